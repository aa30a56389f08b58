"""pack: a document of any length as proto-tokens of its chunks, without loss."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..arrangements import arrangement_named
from ..encoder.encoding import Encoder, refinement
from ..encoder.evaluate import encoder_vectors
from ..errors import InputError
from ..files.quantised import STORES
from ..files.resume import Journal
from ..fitting.descent import FitProgress
from ..fitting.recipes import FitConfig, preset
from ..lm.frozen import FrozenLM
from .archive import Archive, write_archive
from .assembly import assemble
from .chunk_fits import Beginning, fit_chunks, from_tensors, in_two_bytes, shared_m, to_tensors
from .chunks import default_batch_tokens
from .efforts import ChunkFit, Effort, Task, effort_named, next_wave, settle
from .segments import cut_into_segments
from .settings import journal_settings, margin_of, packing_record, same_setting

_TRIAL_CHUNKS = 8
_TRIAL_ENOUGH = 6  # a length succeeds if that many of its trial chunks do
_TRIAL_SHARE = 8  # longer chunks than the shortest are tried if the document has that many times the trial's


@dataclass(frozen=True)
class PackConfig:
    """How to pack a document.

    Attributes:
        effort: name of one of `EFFORTS`, or an `Effort`: how long chunks are fitted before tokens are stored.
        chunk_tokens: tokens of a chunk; None: the longest of the effort's lengths that succeeds in a trial.
        store: dtype of the vectors, one of `STORES`, or `"auto"`: for each chunk the smallest in which it keeps all
            tokens that it has in float32. A chunk whose values exceed float16 is always stored in float32.
        margin: in logits, instead of the effort's (see `Effort`).
        batch_tokens: tokens fitted and decoded side by side; None: from the free memory.
        recipe: arrangement, optimiser, start and seed of the fits; the effort replaces its stopping rule.
        encoder: writes the start of every chunk's vectors, instead of the recipe's start. Its arrangement and its
            longest text apply, and nothing is perturbed. If it writes an m-token for each text, every chunk keeps its
            own.
    """

    effort: str | Effort = "balanced"
    chunk_tokens: int | None = None
    store: str = "auto"
    margin: float | None = None
    batch_tokens: int | None = None
    recipe: FitConfig = field(default_factory=preset)
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "effort", effort_named(self.effort))
        if self.store not in ("auto", *STORES):
            raise InputError(f"unknown store {self.store!r}; choose one of: auto {' '.join(STORES)}")
        for name in ("chunk_tokens", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.margin is not None and not 0 <= self.margin < float("inf"):
            raise InputError(f"margin is {self.margin:g}; it must be a number of logits, at least 0")
        if self.recipe.e_tokens != 1:
            raise InputError(f"e_tokens is {self.recipe.e_tokens}; a chunk has one e-token")
        if self.encoder is not None:
            if self.encoder.config.e_tokens != 1:
                raise InputError(f"the encoder writes {self.encoder.config.e_tokens} e-tokens; a chunk has one")
            object.__setattr__(self, "recipe", refinement(self.encoder, self.recipe.stop.max_steps, self.recipe))


@dataclass(frozen=True)
class PackProgress:
    """The state of a packing.

    Attributes:
        chunks_done: number of settled chunks.
        chunks: number of all chunks, as far as they are cut.
        tokens_done: tokens of the settled chunks.
        tokens: tokens of all chunks.
        tokens_per_second: tokens settled a second, since this call began.
        seconds: wall time since then.
        seconds_left: seconds that the rest takes at that speed, or infinity.
        fit: progress of the current batch.
    """

    chunks_done: int
    chunks: int
    tokens_done: int
    tokens: int
    tokens_per_second: float
    seconds: float
    seconds_left: float
    fit: FitProgress | None


def pack(
    lm: FrozenLM,
    text: str,
    config: PackConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[PackProgress], None] | None = None,
) -> Archive:
    """Pack a text of any length into an archive that gives the same text back.

    Tokens that the vectors do not give are stored beside them.

    Args:
        lm: the frozen model.
        text: any text; nothing in it is normalised.
        config: how to pack.
        output: a file to write the archive to. Finished batches are kept beside it (`OUTPUT.partial`) until it is
            written, so that the same call resumes after an interruption.
        overwrite: replace an existing file, and unfinished work of another call.
        progress: called at every step.

    Returns:
        The archive.

    Raises:
        InputError: an argument is of another type, the text is not Unicode, a chunk does not fit the model, or the
            output cannot be written.
    """
    _check_types(lm, text, config)
    config = config or PackConfig()
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"character {error.start} is half of a surrogate pair: the text has no UTF-8") from None
    if output is None:
        return Packer(lm, text, config, None, progress).archive()
    settings = journal_settings(lm, raw, config)
    with Journal(output, settings, overwrite=overwrite, same=same_setting) as journal:
        archive = Packer(lm, text, config, journal, progress).archive()
        journal.finish(lambda path: write_archive(path, archive))
        return archive


def _check_types(lm: object, text: object, config: object) -> None:
    """Say what was meant where arguments are of another type.

    Raises:
        InputError: one is.
    """
    if not isinstance(lm, FrozenLM):
        raise InputError(f"pack takes a FrozenLM first, not {type(lm).__name__}: pack(load_lm(...), text)")
    if isinstance(text, bytes | bytearray):
        raise InputError("text is bytes; pack takes str: decode it first, as in pack(lm, text.decode())")
    if isinstance(text, os.PathLike):
        raise InputError(f"text is the path {text}; read the file first, as in pack(lm, path.read_bytes().decode())")
    if not isinstance(text, str):
        raise InputError(f"text is {type(text).__name__}; it must be str")
    if isinstance(config, str):
        raise InputError(f"config is {config!r}; for an effort, give PackConfig(effort={config!r})")
    if not isinstance(config, PackConfig | None):
        remedy = "; give PackConfig(recipe=...)" if isinstance(config, FitConfig) else ""
        raise InputError(f"config is {type(config).__name__}; it must be a PackConfig{remedy}")


class Packer:
    """One packing: how the text is cut, what is fitted so far, and what is next. Most callers want `pack`.

    Args:
        lm: the frozen model.
        text: any text that has a UTF-8 form.
        config: how to pack.
        journal: keeps finished batches, and has those of an interrupted call.
        progress: called at every step.
    """

    def __init__(
        self,
        lm: FrozenLM,
        text: str,
        config: PackConfig,
        journal: Journal | None = None,
        progress: Callable[[PackProgress], None] | None = None,
    ) -> None:
        self.lm, self.config, self.journal, self.progress = lm, config, journal, progress
        self.effort, self.margin = effort_named(config.effort), margin_of(config)
        self.arrangement = arrangement_named(config.recipe.arrangement)
        self.batch_tokens = config.batch_tokens or default_batch_tokens(lm)
        self.segments = cut_into_segments(lm, text)
        self.ids = torch.cat([torch.empty(0, dtype=torch.long), *(segment.ids for segment in self.segments)])
        self.m, self.begin = shared_m(lm, config.recipe), _beginning(lm, config.encoder)
        if config.encoder is not None:
            config.encoder.check(lm.identity)
            self.m = in_two_bytes(config.encoder.network.start_m)
        parts = journal.parts() if journal else ()
        self.fits: dict[Task, ChunkFit] = {fit.task: fit for part in parts for fit in from_tensors(part)}
        self._began = time.perf_counter()
        self._done_before: int | None = None
        self._most_done = 0

    def archive(self, store: str | None = None) -> Archive:
        """Fit what is missing, and assemble the archive. A second call, with another dtype, fits nothing.

        Args:
            store: dtype of the vectors, instead of the configuration's.
        """
        store = store or self.config.store
        length, first = self._cut()
        chunks = self._chunks(length)
        while (state := settle(chunks, self.fits, self.effort, first))[0]:
            self._fit(next_wave(state[0]), chunks, first)
        return assemble(
            self.lm,
            self.arrangement,
            self.segments,
            state[1],
            self.m,
            store=store,
            margin=self.margin,
            batch_tokens=self.batch_tokens,
            packing=packing_record(self.lm, self.config, length, store),
        )

    def _cut(self) -> tuple[int, int]:
        """The length of chunks, and the round that they begin with.

        A few chunks of every length are fitted, from the shortest on, while most of them succeed. If they fail with the
        shared m-token even at the shortest length, every chunk gets its own at once. No trial is wasted, since its
        chunks are cut as the document is. A short document has no trial and is cut at the shortest length. Longer
        chunks are tried only if the trial is a small part of the work.
        """
        lengths = self._lengths()
        first_own = next((n for n, fit_round in enumerate(self.effort.rounds) if fit_round.own_m), 0)
        writes_m = self.config.encoder is not None and self.config.encoder.config.m == "text"
        for first in sorted({first_own if writes_m else 0, first_own}):
            taken, tried = None, False
            for length in lengths:
                chunks = self._chunks(length)
                whole = [chunk for chunk in chunks if chunk[1] - chunk[0] == length]
                if len(whole) < _TRIAL_CHUNKS * (1 if length == lengths[0] else _TRIAL_SHARE):
                    break
                tried = True
                tasks = [Task(*whole[n * len(whole) // _TRIAL_CHUNKS], first) for n in range(_TRIAL_CHUNKS)]
                self._fit([task for task in tasks if task not in self.fits], chunks, first)
                if sum(self.fits[t].missed <= self.effort.tolerated_share * length for t in tasks) < _TRIAL_ENOUGH:
                    break
                taken = length
            if taken or not tried:
                return taken or lengths[0], first
        return lengths[0], first_own

    def _lengths(self) -> tuple[int, ...]:
        """Chunk lengths to choose from: those that fit the model's positions and the encoder."""
        asked, encoder = self.config.chunk_tokens, self.config.encoder
        lengths = self.effort.lengths if asked is None else (asked,)
        if encoder is not None:
            longest = encoder.config.max_tokens
            if asked and asked > longest:
                raise InputError(
                    f"a chunk of {asked} tokens is too long for the encoder, which takes {longest}; "
                    f"make it at most {longest} (--chunk-tokens)"
                )
            lengths = tuple(length for length in lengths if length <= longest) or (longest,)
        bound = self.lm.max_positions
        if bound is None:
            return lengths
        most = bound - len(self.arrangement.layout(1).slots) + 1
        fitting = tuple(length for length in lengths if length <= most)
        if most < 1 or (asked and not fitting):
            raise InputError(
                f"a chunk of {lengths[0]} tokens needs more positions than the {bound} of {self.lm.identity.name}"
                + (f"; make it at most {most} (--chunk-tokens)" if most > 0 else "")
            )
        return fitting or (most,)

    def _chunks(self, length: int) -> list[tuple[int, int]]:
        """First token and end of every chunk: each segment is cut on its own."""
        chunks, begin = [], 0
        for segment in self.segments:
            end = begin + len(segment.ids)
            chunks += [(start, min(start + length, end)) for start in range(begin, end, length)]
            begin = end
        return chunks

    def _fit(self, tasks: Sequence[Task], chunks: Sequence[tuple[int, int]], first: int) -> None:
        """Fit these tasks, of one length and in one round, batch by batch, and keep each batch."""
        size = max(1, self.batch_tokens // (tasks[0].length * self.config.recipe.restarts)) if tasks else 1
        for start in range(0, len(tasks), size):
            batch = tasks[start : start + size]
            fits = fit_chunks(
                self.lm,
                self.ids,
                batch,
                self.effort.rounds[batch[0].round],
                self.m,
                self.config.recipe,
                self.margin,
                self._show(chunks, first),
                self.begin,
            )
            if self.journal:
                self.journal.add(to_tensors(fits))
            self.fits |= {fit.task: fit for fit in fits}
        if self.progress and tasks:
            self.progress(self._state(chunks, first))

    def _show(self, chunks: Sequence[tuple[int, int]], first: int) -> Callable[[FitProgress], None] | None:
        if self.progress is None:
            return None
        report, state = self.progress, self._state(chunks, first)
        return lambda fit: report(replace(state, fit=fit, seconds=time.perf_counter() - self._began))

    def _state(self, chunks: Sequence[tuple[int, int]], first: int) -> PackProgress:
        tasks, chosen = settle(chunks, self.fits, self.effort, first)
        done = sum(fit.task.length for fit in chosen)
        if self._done_before is None:
            self._done_before = done
        done = self._most_done = max(done, self._most_done)  # a trial of longer chunks begins anew
        seconds = time.perf_counter() - self._began
        speed = max(0, done - self._done_before) / max(seconds, 1e-9)
        return PackProgress(
            chunks_done=len(chosen),
            chunks=len(chosen) + len(tasks),
            tokens_done=done,
            tokens=len(self.ids),
            tokens_per_second=speed,
            seconds=seconds,
            seconds_left=(len(self.ids) - done) / speed if speed else float("inf"),
            fit=None,
        )


def _beginning(lm: FrozenLM, encoder: Encoder | None) -> Beginning | None:
    return None if encoder is None else lambda target_ids: encoder_vectors(encoder, lm, target_ids)
