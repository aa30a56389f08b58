"""decode: the one forward pass that turns proto-tokens back into their text."""

from __future__ import annotations

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
from .metrics import logit_margins
from .proto_tokens import ProtoTokens


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one forward pass read out of proto-tokens.

    Attributes:
        text: the decoded text.
        ids: its token ids, int64, (T,).
        exact: whether the ids are those that the vectors were fitted to, by their hash.
        seconds: wall time of the forward pass and the read-out, of the whole batch.
        log_probs: log-probability of each decoded token, in nats, (T,), if scores were asked for.
        margins: lead of each decoded token's logit over the next best, (T,), if scores were asked for.
    """

    text: str
    ids: Tensor
    exact: bool
    seconds: float
    log_probs: Tensor | None = None
    margins: Tensor | None = None


@overload
def decode(lm: FrozenLM, tokens: ProtoTokens, *, scores: bool = ...) -> Decoded: ...
@overload
def decode(lm: FrozenLM, tokens: Sequence[ProtoTokens], *, scores: bool = ...) -> list[Decoded]: ...


@torch.no_grad()
def decode(
    lm: FrozenLM, tokens: ProtoTokens | Sequence[ProtoTokens], *, scores: bool = False
) -> Decoded | list[Decoded]:
    """Decode proto-tokens in one forward pass: t_i is the argmax of the output at the i-th position read.

    Texts of different lengths can share the pass: the shorter are padded on the right, where a causal model does not
    look.

    Args:
        lm: the language model that the vectors were fitted to.
        tokens: proto-tokens of one text, or of a batch of texts.
        scores: also return log-probabilities and margins.

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
    results = []
    for row, (item, read) in enumerate(zip(batch, reads, strict=True)):
        window = slice(read.start - first, read.stop - first)
        decoded_ids = ids[row, window]  # (T,)
        log_probs, margins = _scores(logits[row, window], decoded_ids) if scores else (None, None)
        exact = hash_ids(decoded_ids) == item.provenance.target_hash
        results.append(Decoded(lm.decode(decoded_ids), decoded_ids, exact, seconds, log_probs, margins))
    return results[0] if isinstance(tokens, ProtoTokens) else results


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


def _scores(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities in nats and margins of the decoded tokens, both (T,), from logits (T, V)."""
    chosen = ids.to(logits.device)
    log_probs = logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    return log_probs.cpu(), logit_margins(logits, chosen).cpu()
