"""Generation in which each pass verifies the drafts of the pass before and makes new ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..lm.frozen import FrozenLM
from ..lm.generation import without_own_settings
from .drafter import Drafter
from .lookup import Lookup
from .passes import Reading, check_verifies, position_cost
from .states import head_of_some
from .tree import Place, Propose, Tree, candidates, grow

_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-6, 1e6  # within these, logits over it are numbers of float32


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's logits.

    Attributes:
        temperature: what logits are divided by, from 1e-6 to 1e6; 0: always the likeliest token, which is greedy
            generation.
        top_k: draw from so many of the likeliest tokens only; 0: from all.
        top_p: draw from the likeliest tokens whose chances first add up to this only.
        seed: of all draws, a number of 64 bits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not _LEAST_TEMPERATURE <= self.temperature <= _MOST_TEMPERATURE:
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy), or from 1e-6 to 1e6")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; it must be at least 0, which is all tokens")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0, and at most 1")
        if not -(2**63) <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}; it must be a number of 64 bits")

    def settings(self) -> dict[str, Any]:
        """The same for transformers."""
        if self.temperature == 0:
            return {"do_sample": False}
        temperature = float(self.temperature)  # transformers refuses an int
        return {"do_sample": True, "temperature": temperature, "top_k": self.top_k, "top_p": self.top_p}


@dataclass(frozen=True)
class DraftTree:
    """How many drafts a pass verifies.

    Attributes:
        width: candidates for each place; 1: a chain.
        max_nodes: tokens that a pass verifies at most.
        lookup: whether n-grams of the text so far draft, too.
        position_cost: what one more input position costs, as a share of a pass of a few positions; None: as measured on
            this device. It decides how many drafts are worth their position, and never which text comes out.
    """

    width: int = 4
    max_nodes: int = 64
    lookup: bool = True
    position_cost: float | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.max_nodes < 1:
            raise InputError(f"width is {self.width} and max_nodes {self.max_nodes}; both must be at least 1")
        if self.position_cost is not None and not self.position_cost >= 0:
            raise InputError(f"position_cost is {self.position_cost}; it must be at least 0")


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model wrote behind a prompt.

    Attributes:
        ids: the new tokens, int64, (N,), on the CPU; a stop token that ended them is the last.
        text: their text, without the stop token.
        passes: passes of the model, that of the prompt included. Without drafts there is one for each token.
        seconds: wall time, that of the prompt's pass included. What is tried out or measured once for a model is not.
        stopped: whether it ended with a stop token.
        verified: drafts verified in each pass.
        accepted: drafts accepted in each pass.
    """

    ids: Tensor
    text: str
    passes: int
    seconds: float
    stopped: bool
    verified: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass."""
        return len(self.ids) / self.passes


@torch.no_grad()
def generate(
    lm: FrozenLM,
    prompt: str | Tensor,
    *,
    drafter: Drafter | None = None,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    tree: DraftTree | None = None,
    streamer: Any = None,
) -> Generation:
    """Write what the model writes behind a prompt, several tokens a pass where a drafter is given.

    A pass reads the next token, which is known, drafts of the tokens behind it, and behind each of these the drafter's
    learned inputs. Its outputs verify the drafts: the model chooses a token at each, exactly as it would without
    drafts, and the drafts are followed as long as they agree. The outputs at the learned inputs behind the last of
    them are the next drafts. So every token is the model's own choice, by the same draws of the same seed; drafts
    decide only how many passes it takes. The text is that of generation without a drafter wherever rounding allows:
    logits of passes of several positions differ in their last bits.

    Args:
        lm: the frozen model.
        prompt: a text, or its ids, int64, (L,). No special token is added.
        drafter: of the same model; None: one token a pass.
        max_new_tokens: tokens at most; a stop token of the model ends it before.
        sampling: how tokens are chosen; greedy if None.
        tree: how many drafts are verified.
        streamer: told of tokens as they come: transformers' `TextStreamer`, or another with `put(ids)` and `end()`.

    Raises:
        InputError: the prompt is empty, there is no room for the new tokens, the drafter is for another model, or the
            model cannot verify drafts.

    References: Hardware-Aware Parallel Prompt Decoding (Chen et al., 2024), https://arxiv.org/abs/2405.18628;
    Fast Inference from Transformers via Speculative Decoding (Leviathan, Kalman & Matias, 2023),
    https://arxiv.org/abs/2211.17192.
    """
    from transformers import GenerationConfig

    prompt_ids = lm.encode(prompt) if isinstance(prompt, str) else prompt
    _check(lm, prompt_ids, drafter, max_new_tokens)
    sampling = sampling or Sampling()
    drafts = None if drafter is None else _Drafts(lm, drafter, tree or DraftTree(), streamer)
    if drafts is not None:
        drafts.drafter.network.to(lm.device)
        _ = drafts.price  # measured once for a model, before the clock
    stop_ids = stop_tokens(lm)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=stop_ids or None, pad_token_id=0, **sampling.settings()
    )
    cuda = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(sampling.seed)
        began = time.perf_counter()
        ids = prompt_ids.unsqueeze(0).to(lm.device)
        whole = without_own_settings(lm.model).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            streamer=streamer,
            **({} if drafts is None else {"custom_generate": drafts.generate}),
        )
        new_ids = whole[0, len(prompt_ids) :].cpu()
        seconds = time.perf_counter() - began
    stopped = bool(len(new_ids)) and int(new_ids[-1]) in stop_ids
    return Generation(
        ids=new_ids,
        text=lm.decode(new_ids[: len(new_ids) - stopped]),
        passes=len(new_ids) if drafts is None else 1 + len(drafts.verified),
        seconds=seconds,
        stopped=stopped,
        verified=() if drafts is None else tuple(drafts.verified),
        accepted=() if drafts is None else tuple(drafts.accepted),
    )


def stop_tokens(lm: FrozenLM) -> list[int]:
    """The ids that end a text, as the checkpoint's generation settings name them, or else its tokenizer."""
    settings = getattr(lm.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    if named is None:
        named = getattr(lm.tokenizer, "eos_token_id", None)
    return [] if named is None else [named] if isinstance(named, int) else list(named)


def _check(lm: FrozenLM, prompt_ids: Tensor, drafter: Drafter | None, max_new_tokens: int) -> None:
    if prompt_ids.ndim != 1 or not len(prompt_ids):
        raise InputError(f"the prompt's ids have the shape {tuple(prompt_ids.shape)}; it must be (L,), L at least 1")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    length = len(prompt_ids) + max_new_tokens - 1  # the last token is no input
    if lm.max_positions is not None and length > lm.max_positions:
        raise InputError(
            f"a prompt of {len(prompt_ids)} tokens and {max_new_tokens} new ones are too long: {lm.identity.name} has "
            f"{lm.max_positions} positions, so that at most {max(0, lm.max_positions + 1 - len(prompt_ids))} new "
            "tokens fit"
        )
    lm.check_ready(length)
    if not hasattr(lm.model, "generate"):
        raise InputError(f"{lm.identity.name} cannot generate: it is no model of transformers")
    if drafter is not None:
        drafter.check(lm.identity)
        check_verifies(lm)


@dataclass
class _Drafts:
    """The loop of one generation, and what it counts."""

    lm: FrozenLM
    drafter: Drafter
    tree: DraftTree
    streamer: Any
    verified: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def generate(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """What transformers calls in place of its own loop: ids (1, L) in, ids (1, L + N) out."""
        lm = self.lm
        reading = Reading(lm, input_ids[0])
        chooser = _Chooser(logits_processor, stopping_criteria, generation_config.do_sample, self.streamer, input_ids)
        last = generation_config.max_length
        drafter, price = self.drafter, self.price
        token, state = chooser.choose(reading.logits), reading.state
        at_masks = state.new_empty(0, len(state))  # states at the masks behind the last token that was read
        lookup = Lookup(input_ids[0].tolist()) if self.tree.lookup else None
        written = [token]  # by the last pass
        while not chooser.ended:
            room = last - chooser.ids.shape[1] + 1
            depth = drafter.config.n_drafts if drafter.network.has_reader else len(at_masks)
            propose = self._proposer(state, at_masks, depth)
            if lookup is not None:
                lookup.add(written)
                propose, depth = _with_lookup(propose, lookup), max(depth, lookup.n_drafts)
            bounds = {"depth": depth, "max_nodes": self.tree.max_nodes, "room": room}
            tree = grow(token, propose, drafter.acceptance, price, **bounds)
            logits, states = self._verify(reading, tree, state)
            path, token = _follow(tree, logits, chooser)
            written = [*(tree.tokens[node] for node in path[1:]), token]
            reading.keep(path, tree.n_positions)
            first, n = tree.first_masks()[path[-1]], tree.n_masks[path[-1]]
            at_masks, state = states[first : first + n], states[path[-1]]
            self.verified.append(len(tree.tokens) - 1)
            self.accepted.append(len(path) - 1)
        if self.streamer is not None:
            self.streamer.end()
        return chooser.ids

    @cached_property
    def head(self) -> Callable[[Tensor], Tensor]:
        """States to the logits of the tokens that can be drafted."""
        return head_of_some(self.lm, self.drafter.vocabulary)

    @cached_property
    def price(self) -> float:
        """What one more input position costs, in tokens: its share of a pass times the tokens of a pass."""
        cost = self.tree.position_cost
        cost = position_cost(self.lm) if cost is None else cost
        return cost * (1 + max(map(sum, self.drafter.acceptance)))

    def _proposer(self, state: Tensor, at_masks: Tensor, n_drafts: int) -> Propose:
        """Candidates from the state of the last token that was read, and from those at the masks behind it."""
        lm, network = self.lm, self.drafter.network

        def propose(paths: list[tuple[int, ...]]) -> list[Place]:
            depth = len(paths[0]) - 1
            if depth >= n_drafts:
                return [()] * len(paths)
            at_mask = at_masks[depth] if depth < len(at_masks) else torch.zeros_like(state)
            before = lm.embed(torch.tensor([path[-1] for path in paths]))  # (N, D)
            depths = torch.full((len(paths),), depth, device=lm.device)
            rows = network.read(at_mask.expand(len(paths), -1), state.expand(len(paths), -1), before, depths)
            return candidates(self.head(rows), self.tree.width, self.drafter.vocabulary)

        return propose

    def _verify(self, reading: Reading, tree: Tree, state: Tensor) -> tuple[Tensor, Tensor]:
        """One pass of a tree and the learned inputs behind its nodes."""
        device = self.lm.device
        nodes = self.lm.embed(torch.tensor(tree.tokens))  # (n, D)
        depths = torch.tensor(tree.depths, device=device)
        masks = self.drafter.network.inputs(state.expand(len(nodes), -1), nodes, depths)  # (n, M, D)
        behind = [masks[node, :n] for node, n in enumerate(tree.n_masks)]
        return reading.extend(torch.cat([nodes, *behind]), tree.places(), tree.visible(), len(nodes))


def _with_lookup(propose: Propose, lookup: Lookup) -> Propose:
    """The same candidates, and among them what the text itself drafts."""

    def propose_both(paths: list[tuple[int, ...]]) -> list[Place]:
        places = []
        for path, place in zip(paths, propose(paths), strict=True):
            draft = lookup.draft(path[1:])
            if draft is not None:
                token, chance = draft
                chances = dict(place)
                chances[token] = max(chance, chances.get(token, 0.0))
                place = sorted(chances.items(), key=lambda candidate: -candidate[1])
            places.append(place)
        return places

    return propose_both


def _follow(tree: Tree, logits: Tensor, chooser: _Chooser) -> tuple[list[int], int]:
    """The nodes that the model's own choices lead along, and the token chosen behind the last of them."""
    path = [0]
    while True:
        token = chooser.choose(logits[path[-1]])
        child = None if chooser.ended else tree.child(path[-1], token)
        if child is None:
            return path, token
        path.append(child)


class _Chooser:
    """Chooses one token after another as transformers' own loop does: the same processors, draws and stops."""

    def __init__(
        self, processor: Any, stop: Callable[..., Tensor], sample: bool, streamer: Any, input_ids: Tensor
    ) -> None:
        self.processor, self.stop, self.sample, self.streamer = processor, stop, sample, streamer
        self.ids, self.known_ids = input_ids, input_ids.cpu()
        self.ended = False

    def choose(self, logits: Tensor) -> int:
        """The next token after logits (V,)."""
        scores = self.processor(self.ids, logits.unsqueeze(0))  # (1, V)
        chosen = torch.multinomial(scores.softmax(-1), 1) if self.sample else scores.argmax(-1, keepdim=True)  # (1, 1)
        self.ids = torch.cat([self.ids, chosen], -1)
        chosen = chosen.cpu()  # waits for the device, once a token
        self.known_ids = torch.cat([self.known_ids, chosen], -1)
        if self.streamer is not None:
            self.streamer.put(chosen[0])
        self.ended = bool(self.stop(self.known_ids, None).all())
        return int(chosen)
