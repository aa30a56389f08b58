"""pack: a document of any length as proto-tokens of its chunks, lossless."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from ..arrangements import arrangement_named
from ..encoder.encoding import Encoder, refinement
from ..encoder.evaluate import written
from ..errors import InputError
from ..files.quantised import STORES
from ..files.resume import Journal
from ..fitting.descent import FitProgress
from ..fitting.recipes import FitConfig, preset
from ..fitting.starts import start_name
from ..lm.frozen import FrozenLM
from ..lm.identity import library_versions
from .archive import Archive, write_archive
from .assembly import assemble
from .chunk_fits import Beginning, common_m, fit_chunks, from_tensors, in_two_bytes, to_tensors
from .chunks import default_batch_tokens
from .efforts import ChunkFit, Effort, Task, effort_named, next_wave, settle
from .segments import stretches

_TRIAL_CHUNKS = 8
_TRIAL_ENOUGH = 6  # a length comes out if that many of its trial chunks do
_TRIAL_SHARE = 8  # longer chunks than the shortest are tried where the document has that many times the trial's


@dataclass(frozen=True)
class PackConfig:
    """How to pack a document.

    Attributes:
        effort: name of one of `EFFORTS`, or an `Effort`: what is tried before tokens go into the residual.
        chunk_tokens: tokens of a chunk; None: the longest of the effort's lengths that comes out in a trial.
        store: dtype of the vectors, one of `STORES`, or `"auto"`: for each chunk the smallest in which it keeps all
            tokens that it has in float32. A chunk that float16 has no room for is stored in float32 in any case.
        margin: in logits, instead of the effort's (see `Effort`).
        batch_tokens: tokens fitted and decoded side by side; None: from the memory at hand.
        recipe: arrangement, optimiser, start and seed of the fits; its stopping rule is the effort's.
        encoder: what every chunk's vectors begin at, instead of the recipe's start: arrangement and chunks are such as
            it takes, and nothing is perturbed. If it writes an m-token for each text, every chunk keeps its own.
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
    """How a packing stands.

    Attributes:
        chunks_done: chunks that are settled.
        chunks: chunks in all, as far as they are cut.
        tokens_done: tokens of the chunks that are settled.
        tokens: tokens in all.
        tokens_per_second: tokens settled a second, since the beginning or the last resumption.
        seconds: wall time since then.
        seconds_left: seconds that the rest takes at that speed, or infinity.
        fit: the batch at work.
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
    """Pack a text of any length into an archive that gives the same text back, whatever comes out of its vectors.

    Args:
        lm: the frozen model.
        text: any text; nothing in it is normalised.
        config: how to pack.
        output: a file to write the archive to. Finished batches are kept beside it (`OUTPUT.partial`) until it is
            written: the same call goes on where it was stopped.
        overwrite: replace a file that is there, and unfinished work of another call.
        progress: called at every step.

    Returns:
        The archive.

    Raises:
        InputError: the text is not Unicode, a chunk does not fit the model, or the output cannot be written.
    """
    config = config or PackConfig()
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"character {error.start} is half of a surrogate pair: the text has no UTF-8") from None
    if output is None:
        return Packer(lm, text, config, None, progress).archive()
    with Journal(output, _settings(lm, raw, config), overwrite=overwrite) as journal:
        archive = Packer(lm, text, config, journal, progress).archive()
        journal.finish(lambda path: write_archive(path, archive))
        return archive


def _settings(lm: FrozenLM, raw: bytes, config: PackConfig) -> dict[str, object]:
    """What finished batches depend on. How vectors are stored and batched is not part of it."""
    recipe = replace(config.recipe, start="auto")  # named apart
    return {
        "text": hashlib.sha256(raw).hexdigest(),
        "model": [lm.identity.fingerprint, lm.identity.tokenizer_hash],
        "dtype": str(lm.dtype).removeprefix("torch."),
        "effort": repr(config.effort),
        "chunk length": config.chunk_tokens,
        "margin": _margin(config),
        "start": _start_name(lm, config),
        "recipe": repr(recipe),
    }


def _margin(config: PackConfig) -> float:
    return effort_named(config.effort).margin if config.margin is None else config.margin


def _start_name(lm: FrozenLM, config: PackConfig) -> str:
    return start_name(lm, config.recipe) if config.encoder is None else config.encoder.name


class Packer:
    """One packing: what is cut, what is fitted so far, and what is next. Most callers want `pack`.

    Args:
        lm: the frozen model.
        text: any text that has a UTF-8 form.
        config: how to pack.
        journal: where finished batches are kept, and taken from.
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
        self.effort, self.margin = effort_named(config.effort), _margin(config)
        self.arrangement = arrangement_named(config.recipe.arrangement)
        self.batch_tokens = config.batch_tokens or default_batch_tokens(lm)
        self.stretches = stretches(lm, text)
        self.ids = torch.cat([torch.empty(0, dtype=torch.long), *(s.ids for s in self.stretches)])
        self.m, self.begin = common_m(lm, config.recipe), _beginning(lm, config.encoder)
        if config.encoder is not None:
            config.encoder.check(lm.identity)
            self.m = in_two_bytes(config.encoder.network.start_m)
        parts = journal.parts() if journal else ()
        self.fits: dict[Task, ChunkFit] = {fit.task: fit for part in parts for fit in from_tensors(part)}
        self._began = time.perf_counter()
        self._done_before: int | None = None
        self._most_done = 0

    def archive(self, store: str | None = None) -> Archive:
        """Fit what is missing, and assemble the archive; once fitted, it can be had in another dtype at little cost.

        Args:
            store: instead of the configuration's.
        """
        store = store or self.config.store
        length, first = self._cut()
        chunks = self._chunks(length)
        while (state := settle(chunks, self.fits, self.effort, first))[0]:
            self._fit(next_wave(state[0]), chunks, first)
        packing = {
            "effort": json.loads(json.dumps(asdict(self.effort))),  # as it comes back from a file
            "chunk_tokens": length,
            "margin": self.margin,
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "store": store,
            "preset": self.config.recipe.preset,
            "start": _start_name(self.lm, self.config),
            "seed": self.config.recipe.seed,
            "versions": library_versions(),
        }
        return assemble(
            self.lm,
            self.arrangement,
            self.stretches,
            state[1],
            self.m,
            store=store,
            margin=self.margin,
            batch_tokens=self.batch_tokens,
            packing=packing,
        )

    def _cut(self) -> tuple[int, int]:
        """The length of chunks, and the attempt that they begin with.

        A few chunks of every length are fitted, from the shortest on, as long as they come out. If they do not with the
        common m-token even at the shortest, every chunk gets its own at once. These fits count: they are of chunks as
        they are cut later. A document too short for that is cut at the shortest length, and longer chunks are tried
        only where the trial is a small part of the work.
        """
        lengths = self._lengths()
        first_own = next((n for n, attempt in enumerate(self.effort.attempts) if attempt.own_m), 0)
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
                if sum(self.fits[t].missed <= self.effort.spare * length for t in tasks) < _TRIAL_ENOUGH:
                    break
                taken = length
            if taken or not tried:
                return taken or lengths[0], first
        return lengths[0], first_own

    def _lengths(self) -> tuple[int, ...]:
        """Chunk lengths to choose from: those that the model has positions for."""
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
        """First token and end of every chunk: each stretch is cut on its own."""
        chunks, begin = [], 0
        for stretch in self.stretches:
            end = begin + len(stretch.ids)
            chunks += [(start, min(start + length, end)) for start in range(begin, end, length)]
            begin = end
        return chunks

    def _fit(self, tasks: Sequence[Task], chunks: Sequence[tuple[int, int]], first: int) -> None:
        """Do these tasks, of one length and at one attempt, batch by batch, and keep each batch."""
        size = max(1, self.batch_tokens // (tasks[0].length * self.config.recipe.restarts)) if tasks else 1
        for start in range(0, len(tasks), size):
            batch = tasks[start : start + size]
            fits = fit_chunks(
                self.lm,
                self.ids,
                batch,
                self.effort.attempts[batch[0].attempt],
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
    return None if encoder is None else lambda target_ids: written(encoder, lm, target_ids)
