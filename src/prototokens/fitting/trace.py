"""Trace: what a fit decodes at every evaluation, kept while it runs, and its file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..errors import InputError
from ..files.record import read_record, write_record
from ..lm.frozen import FrozenLM
from ..lm.identity import Identity
from ..lm.pieces import pieces, token_texts

KIND = "trace"
NOT_EVALUATED = -1
_TENSORS = {"target_ids": torch.int64, "steps": torch.int64, "ids": torch.int64, "margins": torch.float32,
            "loss_nats": torch.float32}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trace:
    """What the fit of one text decoded at each of N evaluations, in each of R restarts.

    Attributes:
        target_ids: the text, int64, (T,).
        steps: optimiser steps before each evaluation, int64, (N,).
        ids: what is decoded, int64, (N, R, T); -1 where a restart was not evaluated any more.
        margins: lead of each target's logit over the best other, float32 with the precision of float16, (N, R, T); NaN
            where a restart was not evaluated.
        loss_nats: mean cross-entropy, in nats per token, float32, (N, R); NaN where a restart was not evaluated.
        kept: the restart whose vectors were kept, from 0.
        block_length: tokens of a block that has an e-token of its own; None where there are no such blocks.
        arrangement: name of the arrangement.
        stop_reason: see `FitResult`.
        model: the language model.
        pieces: what each token of the text adds to it; joined, they are the text.
        words: text of every id in `ids` and `target_ids`.
    """

    target_ids: Tensor
    steps: Tensor
    ids: Tensor
    margins: Tensor
    loss_nats: Tensor
    kept: int
    block_length: int | None
    arrangement: str
    stop_reason: str
    model: Identity
    pieces: tuple[str, ...]
    words: Mapping[int, str]

    def __post_init__(self) -> None:
        n_evaluations, length = len(self.steps), len(self.target_ids)
        n_restarts = self.loss_nats.shape[-1] if self.loss_nats.ndim else 0
        shapes = {
            "target_ids": (length,),
            "steps": (n_evaluations,),
            "ids": (n_evaluations, n_restarts, length),
            "margins": (n_evaluations, n_restarts, length),
            "loss_nats": (n_evaluations, n_restarts),
        }
        for name, shape in shapes.items():
            tensor: Tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != _TENSORS[name]:
                raise InputError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}; it must be {shape} {_TENSORS[name]}")
        if not n_evaluations or not length or type(self.kept) is not int or not 0 <= self.kept < n_restarts:
            raise InputError(f"a trace of {n_evaluations} evaluations of {length} tokens, restart {self.kept!r} kept")
        if self.block_length is not None and (type(self.block_length) is not int or self.block_length < 1):
            raise InputError(f"block_length is {self.block_length!r}; it must be at least 1, or None")
        if len(self.pieces) != length or not all(
            isinstance(text, str) for text in (*self.pieces, *self.words.values())
        ):
            raise InputError(f"the texts of {len(self.pieces)} tokens for {length}")
        missing = set(self.ids.unique().tolist()) - set(self.words) - {NOT_EVALUATED}
        if missing:
            raise InputError(f"the texts of {len(missing)} ids are missing, such as that of {min(missing)}")

    @property
    def text(self) -> str:
        """The text that was fitted."""
        return "".join(self.pieces)

    @property
    def right(self) -> Tensor:
        """Whether each token is right: its target leads every other logit, bool, (N, R, T)."""
        return self.ids == self.target_ids

    @property
    def n_evaluations(self) -> Tensor:
        """The number of evaluations of each restart, int64, (R,)."""
        return (self.ids[..., 0] != NOT_EVALUATED).sum(0)


class TraceRecorder:
    """Keeps what is decoded at every evaluation of a fit, where the fit runs: nothing is copied before the end.

    `fit(lm, ids, trace=recorder)`, then `recorder.trace(lm)`; after `fit_batch` `recorder.traces(lm)`. An evaluation of
    T tokens takes 6 T bytes on the device, and no pass through the model. One recorder serves one fit.
    """

    def __init__(self) -> None:
        self._evaluations: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []
        self._kept: list[int] = []
        self._stop_reasons: list[str] = []

    def begin(self, target_ids: Tensor, restarts: int, arrangement: Arrangement) -> None:
        """Take what is fitted: texts (B, T), and how.

        Raises:
            InputError: the recorder holds another fit.
        """
        if hasattr(self, "_target_ids"):
            raise InputError("this TraceRecorder holds a fit already; make a new one for each fit")
        self._target_ids, self._restarts, self._arrangement = target_ids.cpu(), restarts, arrangement

    def record(
        self, step: int, rows: Tensor, target_ids: Tensor, rival_ids: Tensor, margin: Tensor, loss: Tensor
    ) -> None:
        """Take one evaluation. Does not synchronise.

        Args:
            step: optimiser steps taken so far.
            rows: which rows were evaluated, on the CPU, int64, (r,).
            target_ids: their texts, (r, T).
            rival_ids: the best other token, (r, T).
            margin: the target's lead over it, (r, T).
            loss: cross-entropy of each token, in nats, (r, T).
        """
        decoded = torch.where(margin > 0, target_ids, rival_ids).to(torch.int32)
        self._evaluations.append((step, rows, decoded, margin.half(), loss.mean(-1)))

    def finish(self, kept: Sequence[int], stop_reasons: Sequence[str]) -> None:
        """Take the end: which restart of each text was kept, and why it ended."""
        self._kept, self._stop_reasons = list(kept), list(stop_reasons)

    def trace(self, lm: FrozenLM) -> Trace:
        """The trace of the one text that was fitted.

        Raises:
            InputError: several were, or none.
        """
        traces = self.traces(lm)
        if len(traces) != 1:
            raise InputError(f"this TraceRecorder holds {len(traces)} texts: use traces(lm)")
        return traces[0]

    def traces(self, lm: FrozenLM) -> list[Trace]:
        """The traces of all texts that were fitted, in order.

        Raises:
            InputError: no fit has ended.
        """
        if not self._kept:
            raise InputError("this TraceRecorder holds no fit that has ended: give it to fit(..., trace=recorder)")
        shape = (len(self._evaluations), len(self._kept) * self._restarts, self._target_ids.shape[1])
        ids = torch.full(shape, NOT_EVALUATED)
        margins, loss_nats = torch.full(shape, torch.nan), torch.full(shape[:2], torch.nan)
        for number, (_, rows, decoded, margin, loss) in enumerate(self._evaluations):
            ids[number, rows] = decoded.cpu().long()
            margins[number, rows] = margin.cpu().float()
            loss_nats[number, rows] = loss.cpu().float()
        return [self._of_text(lm, text, ids, margins, loss_nats) for text in range(len(self._kept))]

    def _of_text(self, lm: FrozenLM, text: int, ids: Tensor, margins: Tensor, loss_nats: Tensor) -> Trace:
        rows = slice(text * self._restarts, (text + 1) * self._restarts)
        evaluated = (ids[:, rows, 0] != NOT_EVALUATED).any(1)
        steps = torch.tensor([step for step, *_ in self._evaluations])
        target_ids = self._target_ids[text]
        seen = torch.cat([ids[:, rows].flatten(), target_ids]).unique().tolist()
        return Trace(
            target_ids=target_ids,
            steps=steps[evaluated],
            ids=ids[evaluated, rows],
            margins=margins[evaluated, rows],
            loss_nats=loss_nats[evaluated, rows],
            kept=self._kept[text],
            block_length=self._arrangement.block_length,
            arrangement=self._arrangement.name,
            stop_reason=self._stop_reasons[text],
            model=lm.identity,
            pieces=tuple(pieces(lm, target_ids)),
            words=token_texts(lm, (token for token in seen if token != NOT_EVALUATED)),
        )


def save_trace(path: str | os.PathLike[str], trace: Trace, *, overwrite: bool = False) -> Path:
    """Write a trace to a file, which appears whole or not at all.

    Raises:
        InputError: the file exists (and `overwrite` is not set), or cannot be written.
    """
    words = sorted(trace.words)
    tensors = {
        "target_ids": trace.target_ids.int(),
        "steps": trace.steps.int(),
        "ids": trace.ids.int(),
        "margins": trace.margins.half(),
        "loss_nats": trace.loss_nats,
        "words": torch.tensor(words, dtype=torch.int32),
    }
    record = {
        "kept": trace.kept,
        "block_length": trace.block_length,
        "arrangement": trace.arrangement,
        "stop_reason": trace.stop_reason,
        "model": asdict(trace.model),
        "pieces": list(trace.pieces),
        "words": [trace.words[word] for word in words],
    }
    return write_record(path, KIND, tensors, record, overwrite=overwrite)


def load_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace that `save_trace` wrote.

    Raises:
        InputError: there is no such file, it is damaged, or it was not written by `save_trace`.
    """
    tensors, record = read_record(path, KIND)
    try:
        read = {name: tensors[name].to(dtype) for name, dtype in _TENSORS.items()}
        return Trace(
            target_ids=read["target_ids"],
            steps=read["steps"],
            ids=read["ids"],
            margins=read["margins"],
            loss_nats=read["loss_nats"],
            kept=record["kept"],
            block_length=record["block_length"],
            arrangement=record["arrangement"],
            stop_reason=record["stop_reason"],
            model=Identity(**record["model"]),
            pieces=tuple(record["pieces"]),
            words=dict(zip(tensors["words"].tolist(), record["words"], strict=True)),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: its record cannot be read ({error!r})") from None
