"""decode: the one forward pass that turns proto-tokens back into their text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from .arrangements import Arrangement
from .errors import InputError
from .lm.frozen import FrozenLM
from .lm.identity import check_same_model, hash_ids
from .proto_tokens import ProtoTokens


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one forward pass read out of proto-tokens, and how sure the model is of every token.

    Attributes:
        text: the decoded text.
        ids: its token ids, int64, (T,).
        exact: whether the ids are those that the vectors were fitted to, by their hash.
        seconds: wall time of the forward pass and the read-out, of the whole batch, without the scores.
        log_probs: log-probability of each decoded token, in nats, at most 0, float32, (T,); None without scores.
        margins: lead of each decoded token's logit over the next best, in logits, at least 0, float32, (T,); None
            without scores.
    """

    text: str
    ids: Tensor
    exact: bool
    seconds: float
    log_probs: Tensor | None = None
    margins: Tensor | None = None

    @property
    def probabilities(self) -> Tensor | None:
        """Probability of each decoded token, 0 to 1, float32, (T,); None without scores."""
        return None if self.log_probs is None else self.log_probs.exp()


@overload
def decode(lm: FrozenLM, tokens: ProtoTokens, *, scores: bool = ...) -> Decoded: ...
@overload
def decode(lm: FrozenLM, tokens: Sequence[ProtoTokens], *, scores: bool = ...) -> list[Decoded]: ...


@torch.no_grad()
def decode(
    lm: FrozenLM, tokens: ProtoTokens | Sequence[ProtoTokens], *, scores: bool = True
) -> Decoded | list[Decoded]:
    """Decode proto-tokens in one forward pass: t_i is the argmax of the output at the i-th position read.

    Texts of different lengths can share the pass: the shorter are padded on the right, where a causal model does not
    look. How far a token leads says how far to trust it where the target is not known: see `calibration`.

    Args:
        lm: the language model that the vectors were fitted to.
        tokens: proto-tokens of one text, or of a batch of texts.
        scores: also return margins and log-probabilities, from the logits of the same pass; `False` saves the time.

    Returns:
        One result, or a list of them for a list.

    Raises:
        InputError: these are no proto-tokens, they belong to another model, or are longer than the model takes.
    """
    batch = _as_batch(tokens)
    if not batch:
        return []
    for item in batch:
        check_model(lm, item)
        _check_length(lm, item)
    began = time.perf_counter()
    inputs_embeds, reads = _arranged(lm, batch)
    first, end = min(r.start for r in reads), max(r.stop for r in reads)
    logits = lm.logits(inputs_embeds, range(first, end))  # (B, end-first, V)
    ids = logits.argmax(-1).cpu()  # (B, end-first)
    seconds = time.perf_counter() - began
    windows = [slice(read.start - first, read.stop - first) for read in reads]
    scored = _scores(logits, windows) if scores else [(None, None)] * len(batch)
    results = []
    for row, (item, window) in enumerate(zip(batch, windows, strict=True)):
        decoded_ids = ids[row, window]  # (T,)
        exact = hash_ids(decoded_ids) == item.provenance.target_hash
        results.append(Decoded(lm.decode(decoded_ids), decoded_ids, exact, seconds, *scored[row]))
    return results[0] if isinstance(tokens, ProtoTokens) else results


@dataclass(frozen=True)
class MarginBin:
    """Decoded tokens whose margins lie between two bounds.

    Attributes:
        low: the least margin, in logits.
        high: the bound above, in logits, which no margin of the bin reaches; infinity for the last bin.
        n_tokens: how many tokens.
        n_right: how many of them are right.
    """

    low: float
    high: float
    n_tokens: int
    n_right: int

    @property
    def share_right(self) -> float:
        """Share of the tokens that are right; NaN without tokens."""
        return self.n_right / self.n_tokens if self.n_tokens else math.nan


def calibration(margins: Tensor, right: Tensor, lows: Sequence[float]) -> list[MarginBin]:
    """How many decoded tokens are right, by their margin.

    Args:
        margins: of decoded tokens, in logits, as `Decoded.margins`, any shape; NaN counts in no bin.
        right: whether each is the token of the text, bool, the same shape.
        lows: the least margin of each bin, rising; a bin ends where the next begins, the last is unbounded. Margins
            below the first count in no bin.

    Returns:
        A bin for each of `lows`.

    Raises:
        InputError: the shapes differ, or the bounds do not rise.
    """
    if margins.shape != right.shape:
        raise InputError(f"margins are {tuple(margins.shape)} and right is {tuple(right.shape)}; give one for each")
    highs = [*lows[1:], math.inf]
    if not lows or any(low >= high for low, high in zip(lows, highs, strict=True)):
        raise InputError(f"lows is {list(lows)}; it must be numbers of logits that rise")
    inside = [(margins >= low) & (margins < high) for low, high in zip(lows, highs, strict=True)]
    return [
        MarginBin(low, high, int(of_bin.sum()), int((of_bin & right).sum()))
        for low, high, of_bin in zip(lows, highs, inside, strict=True)
    ]


def _arranged(lm: FrozenLM, batch: list[ProtoTokens]) -> tuple[Tensor, list[range]]:
    """The input of the pass, (B, L, D), on the model's device, and the positions that are read for each text.

    Only the vectors themselves travel there, for all texts of one layout at once.
    """
    rows_of: dict[tuple[Arrangement, int, int], list[int]] = {}
    for row, item in enumerate(batch):
        rows_of.setdefault((item.arrangement, item.length, len(item.e)), []).append(row)
    layouts = {key: key[0].layout(key[1], key[2]) for key in rows_of}
    longest = max(len(layout.slots) for layout in layouts.values())
    parts = []
    for key, rows in rows_of.items():
        e, m, fixed = (
            torch.stack([getattr(batch[row], name) for row in rows]).to(lm.device) for name in ("e", "m", "fixed")
        )
        inputs_embeds = layouts[key].inputs_embeds(e, m, fixed)
        parts.append(pad(inputs_embeds, (0, 0, 0, longest - inputs_embeds.shape[1])))
    order = [row for rows in rows_of.values() for row in rows]
    reads = [layouts[item.arrangement, item.length, len(item.e)].read_positions() for item in batch]
    if len(parts) == 1:
        return parts[0], reads
    places = torch.tensor(order).argsort().to(lm.device)  # where each text of the batch went
    return torch.cat(parts)[places], reads


def check_model(lm: FrozenLM, tokens: ProtoTokens) -> None:
    """Refuse proto-tokens of another model, and say which one they belong to."""
    check_same_model("these proto-tokens belong", tokens.provenance.model, lm.identity)


def _as_batch(tokens: Any) -> list[ProtoTokens]:
    batch = [tokens] if isinstance(tokens, ProtoTokens) or not isinstance(tokens, Iterable) else list(tokens)
    for item in batch:
        if isinstance(getattr(item, "tokens", None), ProtoTokens):
            raise InputError(f"decode takes proto-tokens, not a {type(item).__name__}: give its .tokens")
        if not isinstance(item, ProtoTokens):
            raise InputError(
                f"decode takes proto-tokens, not a {type(item).__name__}: load(path) reads them from a file"
            )
    return batch


def _check_length(lm: FrozenLM, tokens: ProtoTokens) -> None:
    """Refuse what is longer than the model, before memory is taken for it."""
    needed = tokens.length  # every arrangement needs at least this many positions
    if lm.max_positions is not None and needed > lm.max_positions:
        raise InputError(
            f"these proto-tokens hold {needed} tokens, and {lm.identity.name} has {lm.max_positions} positions"
        )


def _scores(logits: Tensor, windows: Sequence[slice]) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities in nats and margins of the argmax, both (T,), in each text's window of the logits (B, W, V)."""
    log_probs, margins = [], []
    for row, window in enumerate(windows):  # one at a time: the largest copy is that of one text's logits
        of_text = logits[row, window]  # (T, V)
        best = of_text.topk(2, dim=-1).values  # (T, 2)
        log_probs.append(best[:, 0] - of_text.logsumexp(-1))
        margins.append(best[:, 0] - best[:, 1])
    lengths = [len(of_text) for of_text in margins]
    together = torch.stack([torch.cat(log_probs), torch.cat(margins)]).cpu()  # one transfer
    return [(of_text[0], of_text[1]) for of_text in together.split(lengths, dim=1)]
