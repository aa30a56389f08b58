"""Scores of an encoder's vectors without a fit step, by length, beside controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..errors import InputError
from ..fitting.checks import check_room
from ..fitting.objective import cross_entropy, is_argmax
from ..fitting.recipes import FitConfig
from ..fitting.starts import start_vectors
from ..lm.frozen import FrozenLM
from ..texts.sampling import sample
from .encoding import Encoder, encoder_vectors
from .objective import logits_of

CONTROLS = ("encoder", "start", "shuffled", "constant")
"""The encoder, and what it must beat: the start that it was trained from (an encoder that learned nothing), its vectors
for another text, and the mean of its vectors over the texts."""

_POSITIONS_PER_BATCH = 512


@dataclass(frozen=True)
class LengthScore:
    """How well texts of one length are reconstructed in one forward pass from vectors that were not fitted.

    Attributes:
        length: T, in tokens.
        texts: B, the number of texts.
        token_accuracy: mean share of right tokens.
        token_accuracy_se: standard error of that mean over texts; 0 for one text.
        exact_match: share of texts with every token right.
        loss: mean cross-entropy, in nats per token.
    """

    length: int
    texts: int
    token_accuracy: float
    token_accuracy_se: float
    exact_match: float
    loss: float


@torch.no_grad()
def score_vectors(lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, target_ids: Tensor) -> LengthScore:
    """Decode the vectors of a batch and compare with the texts.

    Args:
        lm: the language model.
        arrangement: the vectors' arrangement.
        e: e-tokens, (B, K, D).
        m: m-tokens, (B, D).
        target_ids: the texts, int64, (B, T).
    """
    right_parts, loss_parts = [], []
    size = _batch_size(target_ids.shape[1])
    for e_part, m_part, ids in zip(e.split(size), m.split(size), target_ids.split(size), strict=True):
        target = ids.to(lm.device)
        logits = logits_of(lm, arrangement, e_part, m_part, ids.shape[1])
        right_parts.append(is_argmax(logits, target).float().cpu())
        loss_parts.append(cross_entropy(logits, target).loss.cpu())
    right = torch.cat(right_parts)  # (B, T)
    accuracy = right.mean(-1)  # (B,)
    standard_error = accuracy.std().item() / len(accuracy) ** 0.5 if len(accuracy) > 1 else 0.0
    return LengthScore(
        length=target_ids.shape[1],
        texts=len(target_ids),
        token_accuracy=accuracy.mean().item(),
        token_accuracy_se=standard_error,
        exact_match=right.amin(-1).mean().item(),
        loss=torch.cat(loss_parts).mean().item(),
    )


def control_vectors(name: str, encoder: Encoder, lm: FrozenLM, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of one of `CONTROLS` for texts (B, T): e (B, K, D) and m (B, D).

    Args:
        name: the control.
        encoder: the encoder.
        lm: the language model.
        target_ids: the texts, int64, (B, T); at least two for `"shuffled"`.

    Raises:
        InputError: there is no such control, one text is to be shuffled, or the start is not known.
    """
    if name not in CONTROLS:
        raise InputError(f"unknown control {name!r}; choose one of: {' '.join(CONTROLS)}")
    if name == "shuffled" and len(target_ids) < 2:
        raise InputError("one text cannot be shuffled: give at least two")
    if name == "start":
        return _start_vectors(encoder, lm, target_ids)
    e, m = encoder_vectors(encoder, lm, target_ids)
    if name == "shuffled":
        return e.roll(1, 0), m.roll(1, 0)
    if name == "constant":
        return e.mean(0, keepdim=True).expand_as(e), m.mean(0, keepdim=True).expand_as(m)
    return e, m


def _start_vectors(encoder: Encoder, lm: FrozenLM, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The start that the encoder was trained from, for texts (B, T): e (B, K, D) and m (B, D)."""
    try:
        start = encoder.trained_from
    except InputError as error:
        controls = ",".join(name for name in CONTROLS if name != "start")
        raise InputError(f"{error}; leave out the control 'start' (--controls {controls})") from None
    encoder.check(lm.identity)
    recipe = FitConfig(arrangement=encoder.config.arrangement, start=start)
    starts = [start_vectors(lm, ids, recipe, 0) for ids in target_ids]
    return torch.stack([e for e, _ in starts]), torch.stack([m for _, m in starts])


def evaluate(
    lm: FrozenLM,
    encoder: Encoder,
    lengths: Sequence[int],
    sources: Sequence[str] = ("old", "recent"),
    starts: Sequence[str] = ("anywhere", "sentence"),
    controls: Sequence[str] = CONTROLS,
    texts: int = 64,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Score an encoder and its controls on texts of the `test` split, one row at a time.

    Args:
        lm: the language model.
        encoder: the encoder.
        lengths: text lengths, in tokens; the texts of each are drawn anew.
        sources: see `texts.corpora.SOURCES`.
        starts: where texts begin, see `texts.sampling.sample`: `"anywhere"` cuts windows out of documents,
            `"sentence"` tokenizes what begins at a sentence by itself.
        controls: of `CONTROLS`.
        texts: the number of texts of each source, start and length.
        seed: texts are drawn from it.

    Yields:
        The fields of a `LengthScore`, with `source`, `start`, `control` and the encoder's `block_length`.

    Raises:
        InputError: the model has no room for the longest texts; or as in `control_vectors` and `sample`.
    """
    encoder.check(lm.identity)
    arrangement, block_length = encoder.config.arrangement, encoder.config.block_length
    check_room(lm, arrangement.layout(max(lengths)), "ask for shorter texts (--lengths)")
    for source in sources:
        for start in starts:
            for length in lengths:
                target_ids = sample(source, lm, length, texts, seed=seed, start=start)
                for name in controls:
                    e, m = control_vectors(name, encoder, lm, target_ids)
                    score = score_vectors(lm, arrangement, e, m, target_ids)
                    row = {"source": source, "start": start, "control": name, "block_length": block_length}
                    yield row | asdict(score)


def _batch_size(length: int) -> int:
    return max(1, _POSITIONS_PER_BATCH // (length + 1))
