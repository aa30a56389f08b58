"""How good an encoder's vectors are with no fit step at all, by length, beside controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..arrangements import Arrangement
from ..errors import InputError
from ..fitting.objective import cross_entropy
from ..lm.frozen import FrozenLM
from ..texts.sampling import sample
from .encoding import Encoder
from .objective import logits_of

CONTROLS = ("encoder", "start", "shuffled", "constant")
"""The encoder; and what it must beat: the start that it was trained from (an encoder that learned nothing), its outputs
each given to another text, and the mean of its outputs given to all."""

_POSITIONS_AT_ONCE = 512


@dataclass(frozen=True)
class LengthScore:
    """How texts of one length come back in one forward pass from vectors that nobody fitted.

    Attributes:
        length: T, in tokens.
        texts: B, the number of texts.
        token_accuracy: mean share of right tokens.
        token_accuracy_se: its standard error over texts; 0 for one text.
        exact_match: share of texts of which every token is right.
        loss: mean cross-entropy, in nats per token.
    """

    length: int
    texts: int
    token_accuracy: float
    token_accuracy_se: float
    exact_match: float
    loss: float


@torch.no_grad()
def written(encoder: Encoder, lm: FrozenLM, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """What an encoder writes for texts of one length (B, T), in portions: e (B, K, D) and m (B, D)."""
    parts = [encoder.vectors(lm, ids) for ids in target_ids.split(_rows(target_ids.shape[1]))]
    return torch.cat([e for e, _ in parts]), torch.cat([m for _, m in parts])


@torch.no_grad()
def score(lm: FrozenLM, arrangement: Arrangement, e: Tensor, m: Tensor, target_ids: Tensor) -> LengthScore:
    """Decode vectors of a batch and compare with the texts.

    Args:
        lm: the language model.
        arrangement: the vectors' arrangement.
        e: e-tokens, (B, K, D).
        m: m-tokens, (B, D).
        target_ids: the texts, int64, (B, T).
    """
    right, losses = [], []
    rows = _rows(target_ids.shape[1])
    for some_e, some_m, ids in zip(e.split(rows), m.split(rows), target_ids.split(rows), strict=True):
        target = ids.to(lm.device)
        logits = logits_of(lm, arrangement, some_e, some_m, ids.shape[1])
        right.append((logits.argmax(-1) == target).float().cpu())
        losses.append(cross_entropy(logits, target).loss.cpu())
    hits = torch.cat(right)  # (B, T)
    accuracy = hits.mean(-1)
    spread = accuracy.std().item() / len(accuracy) ** 0.5 if len(accuracy) > 1 else 0.0
    return LengthScore(
        length=target_ids.shape[1],
        texts=len(target_ids),
        token_accuracy=accuracy.mean().item(),
        token_accuracy_se=spread,
        exact_match=hits.amin(-1).mean().item(),
        loss=torch.cat(losses).mean().item(),
    )


def control(
    kind: str, encoder: Encoder, lm: FrozenLM, target_ids: Tensor, beginning: Encoder | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors of one of `CONTROLS` for texts (B, T): e (B, K, D) and m (B, D).

    Args:
        kind: which.
        encoder: the encoder.
        lm: the language model.
        target_ids: the texts, int64, (B, T); at least two for `"shuffled"`.
        beginning: the encoder of the control `"start"`; made anew if None.

    Raises:
        InputError: there is no such control, or one text is to be shuffled.
    """
    if kind not in CONTROLS:
        raise InputError(f"unknown control {kind!r}; choose one of: {' '.join(CONTROLS)}")
    if kind == "shuffled" and len(target_ids) < 2:
        raise InputError("one text cannot be shuffled: give two at least")
    if kind == "start":
        encoder = beginning or Encoder.untrained(lm, encoder.config)
    e, m = written(encoder, lm, target_ids)
    if kind == "shuffled":
        return e.roll(1, 0), m.roll(1, 0)
    if kind == "constant":
        return e.mean(0, keepdim=True).expand_as(e), m.mean(0, keepdim=True).expand_as(m)
    return e, m


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
        sources: see `texts.SOURCES`.
        starts: how texts are cut, see `texts.sample`: `"anywhere"` gives windows, `"sentence"` texts of their own.
        controls: of `CONTROLS`.
        texts: texts of each source, start and length.
        seed: what texts are drawn from.

    Yields:
        The fields of a `LengthScore`, with `source`, `start` and `control`.

    Raises:
        InputError: a length is longer than what the encoder takes; or as in `control` and `texts.sample`.
    """
    longest = encoder.config.max_tokens
    if max(lengths) > longest:
        raise InputError(f"texts of {max(lengths)} tokens are asked for, and the encoder takes {longest} at most")
    beginning = Encoder.untrained(lm, encoder.config) if "start" in controls else None
    for source in sources:
        for start in starts:
            for length in lengths:
                target_ids = sample(source, lm, length, texts, seed=seed, start=start)
                for kind in controls:
                    e, m = control(kind, encoder, lm, target_ids, beginning)
                    found = score(lm, encoder.config.laid_out, e, m, target_ids)
                    yield {"source": source, "start": start, "control": kind} | asdict(found)


def _rows(length: int) -> int:
    return max(1, _POSITIONS_AT_ONCE // (length + 1))
