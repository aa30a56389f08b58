"""pack: a document of any length as proto-tokens of its chunks, without loss."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from ..arrangements import MOST_TOKENS, arrangement_named
from ..encoder.encoding import Encoder, encoder_vectors, refinement, shipped_encoder
from ..errors import InputError
from ..files.quantised import STORES
from ..files.resume import Journal
from ..fitting.descent import FitProgress
from ..fitting.recipes import FitConfig, preset
from ..lm.frozen import FrozenLM
from ..lm.identity import Identity
from .archive import Archive, write_archive
from .assembly import assemble
from .chunk_fits import Beginning, fit_chunks, from_tensors, in_two_bytes, shared_m, to_tensors
from .chunks import default_batch_tokens, in_batches
from .efforts import Chunk, ChunkFit, Effort, check_margin, cut_into_chunks, effort_named
from .segments import cut_into_segments
from .settings import journal_settings, packing_record, same_setting

_IN_TWO_VECTORS = "m,e,m*(n-1)"  # the arrangement whose e-tokens are spread over blocks


@dataclass(frozen=True)
class PackConfig:
    """How to pack a document.

    Attributes:
        effort: name of one of `EFFORTS`, or an `Effort`: tokens of a vector, and how long chunks are fitted. `instant`
            fits nothing: an encoder writes the vectors, and what they do not give is kept beside them.
        chunk_tokens: tokens of a chunk, instead of the effort's; a chunk is what one forward pass decodes.
        tokens_per_vector: tokens of a block, which has an e-token of its own, instead of the effort's.
        store: dtype of the vectors, one of `STORES`, or `"auto"`: for each chunk the smallest that costs it few tokens.
            A chunk whose values exceed float16 is always stored in float32.
        margin: in logits, instead of the effort's (see `Effort`).
        batch_tokens: tokens fitted and decoded side by side; None: from the free memory.
        recipe: optimiser, start and seed of the fits; the effort replaces its stopping rule. Its arrangement is spread
            over blocks if it is `m,e,m*(n-1)`. Any other is taken as it is, and chunks are then as long as a block.
        encoder: writes the start of every chunk's vectors, instead of the recipe's start. Its blocks apply, and nothing
            is perturbed. If it writes an m-token for each text, every chunk keeps its own. If it has one for all texts
            and nothing is fitted, chunks share it. None: no encoder, but for an effort that needs one that of the
            package.
    """

    effort: str | Effort = "balanced"
    chunk_tokens: int | None = None
    tokens_per_vector: int | None = None
    store: str = "auto"
    margin: float | None = None
    batch_tokens: int | None = None
    recipe: FitConfig = field(default_factory=preset)
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "effort", effort_named(self.effort))
        if self.store not in ("auto", *STORES):
            raise InputError(f"unknown store {self.store!r}; choose one of: auto {' '.join(STORES)}")
        for name in ("chunk_tokens", "tokens_per_vector", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.margin is not None:
            check_margin(self.margin)
        if self.recipe.e_tokens != 1:
            raise InputError(f"e_tokens is {self.recipe.e_tokens}; give tokens_per_vector: blocks have an e-token each")
        if self.encoder is None:
            return
        if self.tokens_per_vector is not None:
            b = self.encoder.config.block_length
            raise InputError(f"the encoder writes an e-token for every {b} tokens: leave out tokens_per_vector")
        object.__setattr__(self, "recipe", refinement(self.encoder, self.recipe.stop.max_steps, self.recipe))

    def settled(self, lm: FrozenLM) -> PackConfig:
        """The configuration for a model, with nothing left open: arrangement, chunks and blocks, margin, whose m.

        Raises:
            InputError: a chunk of the length that is asked for does not fit the model, or the effort needs an encoder
                and the package holds none for the model.
        """
        if self.encoder is None and effort_named(self.effort).needs_encoder:
            return replace(self, encoder=_encoder_of_the_package(lm.identity)).settled(lm)
        effort, recipe = effort_named(self.effort), self.recipe
        asked = recipe.tokens_per_vector if isinstance(recipe.tokens_per_vector, int) else None
        b = self.tokens_per_vector or asked or effort.tokens_per_vector
        if self.encoder is None and recipe.arrangement == arrangement_named(_IN_TWO_VECTORS):
            recipe = replace(recipe, tokens_per_vector=b).at(MOST_TOKENS)
        b_of_blocks = arrangement_named(recipe.arrangement).block_length
        effort = replace(
            effort,
            tokens_per_vector=b_of_blocks or b,
            margin=effort.margin if self.margin is None else self.margin,
            chunk_tokens=_chunk_tokens(lm, self, recipe, effort.chunk_tokens if b_of_blocks else b),
            own_m=_own_m(effort, self.encoder),
        )
        return replace(self, effort=effort, recipe=replace(recipe, tokens_per_vector=None))


def _own_m(effort: Effort, encoder: Encoder | None) -> bool:
    """Whether every chunk keeps an m-token of its own; without a fit, an encoder's one m for all texts is shared."""
    if encoder is None:
        return effort.own_m
    return encoder.config.m == "text" or (effort.own_m and effort.steps > 0)


@lru_cache(maxsize=1)
def _encoder_of_the_package(model: Identity) -> Encoder:
    """The shipped encoder, loaded once for many documents."""
    return shipped_encoder(model)


def _chunk_tokens(lm: FrozenLM, config: PackConfig, recipe: FitConfig, default: int) -> int:
    """Tokens of a chunk: those that are asked for, or as many of the default as the model takes.

    Raises:
        InputError: a chunk of the length that is asked for does not fit.
    """
    asked = config.chunk_tokens
    wanted, bound = asked or default, lm.max_positions
    if bound is None:
        return wanted
    most = bound - len(arrangement_named(recipe.arrangement).layout(1).slots) + 1
    if most < 1 or (asked and asked > most):
        raise InputError(
            f"a chunk of {wanted} tokens needs more positions than the {bound} of {lm.identity.name}"
            + (f"; make it at most {most} (--chunk-tokens)" if most > 0 else "")
        )
    return min(wanted, most)


@dataclass(frozen=True)
class PackProgress:
    """The state of a packing.

    Attributes:
        chunks_done: number of fitted chunks.
        chunks: number of all chunks.
        tokens_done: tokens of the fitted chunks.
        n_tokens: tokens of all chunks.
        tokens_per_second: tokens fitted a second, since this call began; steps of the current batch count in part.
        seconds: wall time since then.
        seconds_left: seconds that the rest takes at that speed, or infinity.
        fit: progress of the current batch.
    """

    chunks_done: int
    chunks: int
    tokens_done: int
    n_tokens: int
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
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"character {error.start} is half of a surrogate pair: the text has no UTF-8") from None
    config = (config or PackConfig()).settled(lm)
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
    """One packing: how the text is cut, and what is fitted so far. Most callers want `pack`.

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
        config = config.settled(lm)
        if config.encoder is not None:
            config.encoder.check(lm.identity)
        self.lm, self.config, self.journal, self.progress = lm, config, journal, progress
        self.effort, self.recipe = effort_named(self.config.effort), self.config.recipe
        self.batch_tokens = config.batch_tokens or default_batch_tokens(lm)
        self.segments = cut_into_segments(lm, text)
        self.ids = torch.cat([torch.empty(0, dtype=torch.long), *(segment.ids for segment in self.segments)])
        lengths = [len(segment.ids) for segment in self.segments]
        self.chunks = cut_into_chunks(lengths, self.effort.chunk_tokens)
        self.m, self.begin = shared_m(lm, self.recipe), _beginning(lm, config.encoder)
        if config.encoder is not None:
            self.m = in_two_bytes(config.encoder.network.start_m)
        parts = journal.parts() if journal else ()
        self.fits: dict[Chunk, ChunkFit] = {fit.chunk: fit for part in parts for fit in from_tensors(part)}
        self._began = time.perf_counter()
        self._done_before = self._tokens_done()

    def archive(self, store: str | None = None) -> Archive:
        """Fit what is missing, and assemble the archive. A second call, with another dtype, fits nothing.

        Args:
            store: dtype of the vectors, instead of the configuration's.
        """
        store = store or self.config.store
        self._fit([chunk for chunk in self.chunks if chunk not in self.fits])
        return assemble(
            self.lm,
            arrangement_named(self.recipe.arrangement),
            self.segments,
            [self.fits[chunk] for chunk in self.chunks],
            self.m,
            store=store,
            margin=self.effort.margin,
            batch_tokens=self.batch_tokens,
            packing=packing_record(self.lm, self.config, store),
        )

    def positions(self) -> tuple[int, int]:
        """Input positions that the fits so far passed forward and backward through the model."""
        fits = self.fits.values()
        return sum(fit.token_positions for fit in fits), sum(fit.backward_positions for fit in fits)

    def _fit(self, chunks: Sequence[Chunk]) -> None:
        """Fit these chunks, batch by batch, and keep each batch."""
        lengths = [chunk.length for chunk in chunks]
        for numbers in in_batches(lengths, self.batch_tokens // self.recipe.restarts):
            batch = [chunks[number] for number in numbers]
            fits = fit_chunks(self.lm, self.ids, batch, self.effort, self.m, self.recipe, self._show(batch), self.begin)
            if self.journal:
                self.journal.add(to_tensors(fits))
            self.fits |= {fit.chunk: fit for fit in fits}
        if self.progress and chunks:
            self.progress(self._state())

    def _show(self, batch: Sequence[Chunk]) -> Callable[[FitProgress], None] | None:
        if self.progress is None:
            return None
        report, n_tokens = self.progress, sum(chunk.length for chunk in batch)
        return lambda fit: report(self._state(fit, n_tokens * fit.step / max(1, fit.max_steps)))

    def _tokens_done(self) -> int:
        return sum(chunk.length for chunk in self.chunks if chunk in self.fits)

    def _state(self, fit: FitProgress | None = None, under_way: float = 0.0) -> PackProgress:
        """The state, with as many tokens' worth of steps of a batch under way."""
        done = self._tokens_done()
        seconds = time.perf_counter() - self._began
        speed = (done - self._done_before + under_way) / max(seconds, 1e-9)
        return PackProgress(
            chunks_done=len(self.fits),
            chunks=len(self.chunks),
            tokens_done=done,
            n_tokens=len(self.ids),
            tokens_per_second=speed,
            seconds=seconds,
            seconds_left=(len(self.ids) - done - under_way) / speed if speed else float("inf"),
            fit=fit,
        )


def _beginning(lm: FrozenLM, encoder: Encoder | None) -> Beginning | None:
    return None if encoder is None else lambda target_ids: encoder_vectors(encoder, lm, target_ids)
