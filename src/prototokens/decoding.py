"""decode: the one forward pass that turns proto-tokens back into their text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import InputError
from .lm.frozen import FrozenLM
from .lm.identity import Identity, hash_ids
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

    Texts of different lengths can share the pass: the shorter are filled up on the right, where a causal model
    does not look.

    Args:
        lm: the language model that the vectors were fitted to.
        tokens: proto-tokens of one text, or of a batch of texts.
        scores: also return log-probabilities and margins.

    Returns:
        One result, or a list of them for a list.

    Raises:
        InputError: the vectors belong to another model.
    """
    batch = [tokens] if isinstance(tokens, ProtoTokens) else list(tokens)
    if not batch:
        return []
    for one in batch:
        check_model(lm, one)
        needed = one.length  # every arrangement needs at least this many positions
        if lm.max_positions is not None and needed > lm.max_positions:
            raise InputError(
                f"these proto-tokens hold {needed} tokens, and {lm.identity.name} has {lm.max_positions} positions"
            )
    began = time.perf_counter()
    inputs = [one.inputs_embeds() for one in batch]
    longest = max(x.shape[1] for x in inputs)
    inputs_embeds = torch.cat([pad(x, (0, 0, 0, longest - x.shape[1])) for x in inputs])  # (B, L, D)
    reads = [one.arrangement.layout(one.length, one.e.shape[0]).read_positions() for one in batch]
    first, end = min(r.start for r in reads), max(r.stop for r in reads)
    logits = lm.logits(inputs_embeds, range(first, end))  # (B, end-first, V)
    ids = logits.argmax(-1).cpu()
    seconds = time.perf_counter() - began
    results = []
    for row, (one, read) in enumerate(zip(batch, reads, strict=True)):
        window = slice(read.start - first, read.stop - first)
        found = ids[row, window]
        log_probs = margins = None
        if scores:
            own, chosen = logits[row, window], found.to(logits.device)
            log_probs = own.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).cpu()
            margins = logit_margins(own, chosen).cpu()
        exact = hash_ids(found) == one.provenance.target_hash
        results.append(Decoded(lm.decode(found), found, exact, seconds, log_probs, margins))
    return results[0] if isinstance(tokens, ProtoTokens) else results


def check_model(lm: FrozenLM, tokens: ProtoTokens) -> None:
    """Refuse proto-tokens of another model, and say which one they belong to."""
    check_identity(lm, tokens.provenance.model)


def check_identity(lm: FrozenLM, wanted: Identity) -> None:
    """Refuse vectors that belong to another model; see `check_model`."""
    own = lm.identity
    if wanted.fingerprint != own.fingerprint:
        revision = f" at revision {wanted.revision}" if wanted.revision else ""
        raise InputError(
            f"these proto-tokens belong to {wanted.name}{revision} (weights {wanted.fingerprint[:12]}), "
            f"not to {own.name} (weights {own.fingerprint[:12]})"
        )
    if wanted.tokenizer_hash != own.tokenizer_hash:
        raise InputError(f"these proto-tokens belong to {wanted.name} with another tokenizer vocabulary")
