"""Drafters for tests: with random weights, and one that knows what the model will write."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from families import FAMILIES
from prototokens import Drafter, FrozenLM, generate
from prototokens.drafting.network import DrafterConfig, DrafterNetwork
from prototokens.drafting.states import states_kept

VERIFIERS = [name for name in FAMILIES if name != "mamba"]
"""The families that can verify drafts: all with attention."""

CONFIG = DrafterConfig(n_masks=2, n_drafts=3, input_width=16, reader_width=16)


def random_drafter(lm: FrozenLM, config: DrafterConfig = CONFIG, seed: int = 0) -> Drafter:
    """A drafter none of whose weights is zero, so that its drafts depend on all it reads."""
    drafter = Drafter.untrained(lm, config)
    with torch.no_grad():
        for i, weight in enumerate(drafter.network.parameters()):
            weight.copy_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * seed + i)))
    return drafter


class Oracle(nn.Module):
    """A drafter's network that knows a text.

    At each mask it gives the embedding of the token that stands there in the text, so that what the model's head reads
    there is what the model would write. It finds the place by what it is given: the state, the token, and how far apart
    they are.

    Args:
        lm: the model.
        ids: the text, int64, (L,).
        n_masks: M.
        wrong_every: every so manieth token of the text is not known to it.
    """

    def __init__(self, lm: FrozenLM, ids: Tensor, n_masks: int, wrong_every: int = 0) -> None:
        super().__init__()
        self.n_masks, self.has_reader = n_masks, False
        with states_kept(lm) as states:
            lm.next_token_logits(ids[:-1])
        self.states = states[0][0]  # (L - 1, H)
        self.tokens = lm.embed(ids)  # (L, D)
        told = ids.clone()
        if wrong_every:
            told[::wrong_every] = (told[::wrong_every] + 1) % 256
        self.told = lm.embed(told)

    def place(self, state: Tensor, token: Tensor, lag: int) -> int:
        """The place in the text of a token, given the state `lag` tokens before the token before it."""
        first = 1 + lag
        states = self.states[: len(self.tokens) - first]
        distance = (states - state).norm(dim=-1) / state.norm()
        distance += (self.tokens[first:] - token).norm(dim=-1) / token.norm()
        return first + int(distance.argmin())

    def inputs(self, state: Tensor, token: Tensor, lag: Tensor) -> Tensor:
        last = len(self.told) - 1
        rows = [self.place(s, t, d) for s, t, d in zip(state, token, lag.tolist(), strict=True)]
        return torch.stack([self.told[[min(row + i, last) for i in range(1, self.n_masks + 1)]] for row in rows])

    def read(self, at_mask: Tensor, *_: Tensor) -> Tensor:
        return at_mask


def oracle(lm: FrozenLM, prompt: str | Tensor, n_tokens: int, n_masks: int = 3, wrong_every: int = 0) -> Drafter:
    """A drafter that knows what the model writes behind a prompt, all of it or all but some tokens."""
    ids = lm.encode(prompt) if isinstance(prompt, str) else prompt
    text = torch.cat([ids, generate(lm, ids, max_new_tokens=n_tokens).ids])
    network = Oracle(lm, text, n_masks, wrong_every)
    shares = tuple(tuple(float(i < n) for i in range(n_masks)) for n in range(n_masks + 1))
    config = DrafterConfig(n_masks, n_masks, reader_width=0)
    return Drafter(config, lm.identity, network, {}, shares)  # type: ignore[arg-type]


def states_of(lm: FrozenLM, inputs_embeds: Tensor) -> Tensor:
    """What the head reads in an ordinary pass of vectors (L, D): (L, H)."""
    with states_kept(lm) as states:
        lm.logits(inputs_embeds[None], range(len(inputs_embeds)))
    return states[0][0]


def by_hand(lm: FrozenLM, network: DrafterNetwork, ids: Tensor, place: int, lag: int, n_masks: int) -> Tensor:
    """Logits of the drafts behind one place of a text (L,), by ordinary passes of what leads to them: (D, V)."""
    embeddings = lm.embed(ids)
    states = states_of(lm, embeddings)
    masks = network.inputs(states[[max(0, place - 1 - lag)]], embeddings[[place]], torch.tensor([lag]))[0]
    at_masks = states_of(lm, torch.cat([embeddings[: place + 1], masks[:n_masks]]))[place + 1 :]
    rows = []
    for i in range(1, network.n_drafts + 1):
        at_mask = at_masks[i - 1] if i <= n_masks else torch.zeros_like(states[0])
        before = embeddings[min(place + i, len(ids) - 1)]
        rows.append(network.read(at_mask[None], states[[place]], before[None], torch.tensor([i - 1]))[0])
    return lm.model.get_output_embeddings()(torch.stack(rows))
