"""Training a drafter: the model writes texts, and the drafter learns to say ahead what it writes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files.trainings import check_same_settings, optimiser_tensors, restore_optimisers, settings_record
from ..lm.frozen import FrozenLM
from .drafter import Drafter
from .masks import attention_mask
from .network import DrafterConfig, DrafterNetwork
from .passes import check_verifies
from .states import logits_of, states_kept
from .written import Written, write_texts

_JUDGED_TEXTS = 32
_JUDGED_ROUND = -1  # a round that no training takes
_LAG_DECAY = 0.5  # of the chance of a lag to that of the next
_WARM_UP = 20
_MASK_RATE = 20.0  # over that of the network's weights


@dataclass(frozen=True)
class DrafterTraining:
    """How to train a drafter.

    Attributes:
        drafter: how it is built.
        source: where prompts come from, see `texts.SOURCES`; only its `train` split is used.
        prompt_lengths: tokens of a prompt; each round draws one of them.
        new_tokens: what the model writes behind a prompt, greedily.
        round_texts: texts that the model writes in a round.
        batch_texts: texts of a step; every text of a round is used twice.
        places: places in a text behind which the drafter drafts in a step.
        steps: optimiser steps.
        lr: AdamW's learning rate of the network after the first 20 steps; it falls in proportion to the steps that are
            left. That of the masks themselves, in standard deviations of the embeddings, is 20 times as high.
        seed: of all draws.
    """

    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    source: str = "speeches"
    prompt_lengths: tuple[int, ...] = (16, 32, 64)
    new_tokens: int = 96
    round_texts: int = 128
    batch_texts: int = 4
    places: int = 48
    steps: int = 600
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("new_tokens", "round_texts", "batch_texts", "places", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.round_texts % self.batch_texts:
            raise InputError(
                f"round_texts is {self.round_texts}, which batch_texts, {self.batch_texts}, does not divide"
            )
        if not self.prompt_lengths or min(self.prompt_lengths) < 1:
            raise InputError(f"prompt_lengths are {self.prompt_lengths}; each must be at least 1")
        if self.new_tokens <= self.drafter.n_drafts:
            raise InputError(
                f"new_tokens is {self.new_tokens}; {self.drafter.n_drafts} drafts need at least "
                f"{self.drafter.n_drafts + 1}"
            )
        if not 0 < self.lr < float("inf"):
            raise InputError(f"lr is {self.lr}; it must be a positive number")

    @property
    def round_steps(self) -> int:
        """Steps of a round."""
        return 2 * self.round_texts // self.batch_texts

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return self.lr * min(1.0, (step + 1) / _WARM_UP) * (1 - step / self.steps)


@dataclass(frozen=True)
class DrafterProgress:
    """One step of training a drafter.

    Attributes:
        step: steps taken.
        steps: steps in all.
        loss_nats: mean cross-entropy of the drafts.
        right: of each place behind the next token, the share of drafts that are right.
        samples: places drafted behind so far, since the training began.
        seconds: wall time since the training began or last resumed.
    """

    step: int
    steps: int
    loss_nats: float
    right: tuple[float, ...]
    samples: int
    seconds: float


Draw = Callable[[int, int, int], Tensor]
"""`draw(length, count, seed)` gives prompts as ids, (count, length)."""


def round_of_texts(lm: FrozenLM, draw: Draw, config: DrafterTraining, number: int, count: int) -> Written:
    """The texts of a round, behind prompts that are drawn from the seed and the round's number."""
    length = random.Random(f"{config.seed} {number}").choice(config.prompt_lengths)
    return write_texts(lm, draw(length, count, config.seed * 1_000_003 + number), config.new_tokens)


def train_drafter(
    lm: FrozenLM,
    draw: Draw,
    config: DrafterTraining | None = None,
    resume: tuple[Drafter, dict[str, Tensor]] | None = None,
    keep: Callable[[Drafter, dict[str, Tensor], DrafterProgress], None] | None = None,
) -> Drafter:
    """Train a drafter for a model on what the model itself writes.

    A round draws prompts, and the model writes behind them. A step takes some of the texts and random places in them.
    Behind each place p stand the learned inputs, at the places of the next tokens; they attend to the text up to p and
    to the inputs before them, and to no other place's. Draft i is of the token at p + 1 + i, and the loss is the
    cross-entropy of that token. All places of a text share the text's cache, which is read once and without gradients.
    The inputs are made from what is known before the pass in generation: the state before p, or one of those some
    tokens before. The reader knows what is known after it: the state of p, and the token before the one it drafts.
    Some places lack some of the masks, as in generation.

    Args:
        lm: the frozen model.
        draw: gives prompts.
        config: how to train.
        resume: what `keep` was given last; the training ends the same as without the interruption.
        keep: called after every step with the drafter, what a resumption needs beside it, and the progress.

    Returns:
        The drafter. Its `acceptance` is measured on 32 texts of a round that it was not trained on.

    Raises:
        InputError: the model cannot verify drafts or has too few positions, or the training to resume is of another
            model or has other settings.
    """
    config = config or DrafterTraining()
    check_verifies(lm)
    lm.check_ready(max(config.prompt_lengths) + config.new_tokens + config.drafter.n_drafts)
    for number, length in enumerate(sorted(set(config.prompt_lengths))):  # a source that is too small is told now
        draw(length, max(config.round_texts, _JUDGED_TEXTS), number)
    if resume is None:
        start = Drafter.untrained(lm, config.drafter, seed=config.seed)
        drafter = replace(start, training=start.training | {"config": settings_record(config), "samples": 0})
    else:
        drafter = _checked(resume[0], lm, config)
    network = drafter.network.to(lm.device)
    optimiser = _optimiser(network)
    counts = torch.zeros(lm.vocabulary, dtype=torch.long)
    if resume is not None:
        counts = resume[1].get("counts", counts)
        restore_optimisers([optimiser], resume[1])
    began = time.perf_counter()
    written: Written | None = None
    for step in range(drafter.training["step"], config.steps):
        number, within = divmod(step, config.round_steps)
        if written is None or within == 0:
            written = round_of_texts(lm, draw, config, number, config.round_texts)
            if within == 0:
                counts = counts + written.counts(lm.vocabulary)
        rng = random.Random(f"{config.seed} {step} places")
        batch = _batch(written, config, within)
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * config.rate(step)
        drafts = draft_at(lm, network, batch, _places(batch, config, rng))
        optimiser.zero_grad(set_to_none=True)
        drafts.loss_nats.backward()
        optimiser.step()
        samples = drafter.training["samples"] + drafts.is_known[..., 0].numel()
        drafter = replace(drafter, training=drafter.training | {"step": step + 1, "samples": samples})
        if step + 1 == config.steps:
            vocabulary = most_frequent(counts, config.drafter.vocabulary)
            rows = acceptance(lm, network, draw, config, vocabulary)
            drafter = replace(drafter, acceptance=rows, vocabulary=vocabulary)
        if keep:
            unfinished = optimiser_tensors([optimiser]) | {"counts": counts} if step + 1 < config.steps else {}
            progress = DrafterProgress(
                step + 1, config.steps, drafts.loss_nats.item(), drafts.shares(), samples, time.perf_counter() - began
            )
            keep(drafter, unfinished, progress)
    return drafter


@dataclass(frozen=True, eq=False)
class Drafts:
    """What is drafted behind places of texts.

    Attributes:
        loss_nats: mean cross-entropy of the known tokens.
        is_right: whether the likeliest token is the text's, bool, (B, G, D).
        is_known: whether the text goes on that far, bool, (B, G, D).
    """

    loss_nats: Tensor
    is_right: Tensor
    is_known: Tensor

    def shares(self) -> tuple[float, ...]:
        """Of each place behind the next token, the share of drafts that are right."""
        return tuple((self.is_right.sum((0, 1)) / self.is_known.sum((0, 1)).clamp_min(1)).tolist())

    def accepted(self) -> tuple[float, ...]:
        """The share of places behind which all drafts are right as far as the i-th."""
        known = self.is_known[..., -1]  # places behind which the text goes on far enough for all
        right = self.is_right.cumprod(-1).bool() & known.unsqueeze(-1)
        return tuple((right.sum((0, 1)) / known.sum().clamp_min(1)).tolist())


@dataclass(frozen=True, eq=False)
class Places:
    """Where a step drafts.

    Attributes:
        places: the tokens behind which is drafted, int64, (B, G).
        lags: how many tokens before the one before that the state for the inputs is taken, int64, (B, G).
        n_masks: how many of the masks there are, int64, (B, G).
    """

    places: Tensor
    lags: Tensor
    n_masks: Tensor


def draft_at(
    lm: FrozenLM, network: DrafterNetwork, written: Written, chosen: Places, vocabulary: Tensor | None = None
) -> Drafts:
    """Draft behind places of texts, through the frozen model, with gradients for the network.

    Args:
        lm: the frozen model.
        network: the drafter's.
        written: B texts.
        chosen: where is drafted.
        vocabulary: tokens of which a draft can be right, int64, (S,); None: all.
    """
    from transformers import DynamicCache

    ids, places, length = written.ids, chosen.places, written.ids.shape[1]
    rows = torch.arange(len(ids), device=lm.device).unsqueeze(1)
    cache = DynamicCache()
    with torch.no_grad(), states_kept(lm, slice(-1, None)) as states:
        lm.run(lm.inputs_of_ids(ids), length, past_key_values=cache, use_cache=True)
    text = states[0].to(lm.device).float()  # (B, L, H)
    behind = torch.arange(1, network.n_drafts + 1, device=lm.device)
    target_at = places.unsqueeze(-1) + behind + 1  # (B, G, D)
    at_masks = _at_masks(lm, network, ids, cache, text, chosen)  # (B, G, D, H)
    before = lm.embed(ids[rows.unsqueeze(-1), (target_at - 1).clamp_max(length - 1)])  # (B, G, D, D)
    state = text[rows, places].unsqueeze(2).expand(-1, -1, network.n_drafts, -1)
    depths = (behind - 1).expand(target_at.shape)
    read = network.read(*(x.flatten(0, 2) for x in (at_masks, state, before, depths)))
    logits = logits_of(lm, read)  # (B * G * D, V)
    is_known = target_at < written.ends[:, None, None]
    if not network.has_reader:
        is_known = is_known & (depths < chosen.n_masks.unsqueeze(-1))
    targets = ids[rows.unsqueeze(-1), target_at.clamp_max(length - 1)]
    loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
    loss = (loss * is_known.flatten()).sum() / is_known.sum().clamp_min(1)
    is_right = (logits.detach().argmax(-1).view(targets.shape) == targets) & is_known
    if vocabulary is not None:
        is_right = is_right & torch.isin(targets, vocabulary.to(lm.device))
    return Drafts(loss, is_right, is_known)


def _at_masks(lm: FrozenLM, network: DrafterNetwork, ids: Tensor, cache: Any, text: Tensor, chosen: Places) -> Tensor:
    """States at the masks behind places, (B, G, D, H); zero where there is no mask."""
    places, n_masks, (n_texts, length) = chosen.places, network.n_masks, ids.shape
    states = text.new_zeros(*places.shape, network.n_drafts, text.shape[-1])
    if not n_masks:
        return states
    rows = torch.arange(n_texts, device=lm.device).unsqueeze(1)
    known = text[rows, (places - 1 - chosen.lags).clamp_min(0)]  # (B, G, H)
    masks = network.inputs(known.flatten(0, 1), lm.embed(ids[rows, places]).flatten(0, 1), chosen.lags.flatten())
    inputs: dict[str, Any] = lm.inputs_of_vectors(masks.view(n_texts, -1, masks.shape[-1]))
    order = torch.arange(1, n_masks + 1, device=lm.device)
    positions = (places.unsqueeze(-1) + order).flatten(1)  # (B, G * M)
    inputs["position_ids"] = positions
    inputs["attention_mask"] = attention_mask(lm, _seen(places, n_masks, length), positions, length)
    with states_kept(lm, slice(1)) as kept:
        lm.run(inputs, length + n_masks, past_key_values=cache, use_cache=True)
    at_masks = kept[0].to(lm.device).float().view(*places.shape, n_masks, -1)
    is_given = order <= chosen.n_masks.unsqueeze(-1)  # (B, G, M)
    return torch.cat([at_masks * is_given.unsqueeze(-1), states[:, :, n_masks:]], 2)


def most_frequent(counts: Tensor, size: int) -> Tensor | None:
    """The tokens that are drafted, by their counts (V,) in the texts: ids, ascending; None: all."""
    if not size or size >= len(counts):
        return None
    size = min(size, max(1, int((counts > 0).sum())))
    return counts.argsort(descending=True, stable=True)[:size].sort().values


@torch.no_grad()
def acceptance(
    lm: FrozenLM, network: DrafterNetwork, draw: Draw, config: DrafterTraining, vocabulary: Tensor | None = None
) -> tuple[tuple[float, ...], ...]:
    """The drafter's `acceptance`, on texts of a round that no training takes.

    Args:
        lm: the frozen model.
        network: the drafter's.
        draw: gives prompts.
        config: how the drafter is trained.
        vocabulary: the tokens that are drafted, int64, (S,); None: all.
    """
    written = round_of_texts(lm, draw, config, _JUDGED_ROUND, _JUDGED_TEXTS)
    batches = [written.rows(range(i, i + 4)) for i in range(0, _JUDGED_TEXTS, 4)]
    rows = []
    for n_masks in range(network.n_masks + 1):
        rng = random.Random(f"{config.seed} judged")
        drafts = [draft_at(lm, network, batch, _places(batch, config, rng, n_masks), vocabulary) for batch in batches]
        is_right, is_known = (torch.cat([getattr(d, name) for d in drafts]) for name in ("is_right", "is_known"))
        rows.append(Drafts(drafts[0].loss_nats, is_right, is_known).accepted())
    return tuple(rows)


def _places(written: Written, config: DrafterTraining, rng: random.Random, n_masks: int | None = None) -> Places:
    """Random places of texts, lags, and numbers of masks unless one is given."""
    n_texts, length = written.ids.shape
    first, last, most = written.prompt_length, length - 2 - config.drafter.n_drafts, config.drafter.n_masks
    shape = range(n_texts), range(config.places)
    places = [[rng.randint(first - 1, max(first - 1, last)) for _ in shape[1]] for _ in shape[0]]
    lags = range(config.drafter.n_drafts + 1)
    drawn = [rng.choices(lags, [_LAG_DECAY**lag for lag in lags], k=config.places) for _ in shape[0]]
    fewest = 0 if config.drafter.reader_width else most  # without a reader a mask more is the same, and a draft more
    counts = [[rng.randint(fewest, most) if n_masks is None else n_masks for _ in shape[1]] for _ in shape[0]]
    return Places(*(torch.tensor(values, device=written.ids.device) for values in (places, drawn, counts)))


def _seen(places: Tensor, n_masks: int, length: int) -> Tensor:
    """What the masks behind places (B, G) of texts of L tokens attend to: bool, (B, G * M, L + G * M)."""
    n_places, device = places.shape[1], places.device
    text = torch.arange(length, device=device) <= places.repeat_interleave(n_masks, 1).unsqueeze(-1)  # (B, GM, L)
    place = torch.arange(n_places * n_masks, device=device) // n_masks
    same = (place.unsqueeze(1) == place) & torch.ones(len(place), len(place), device=device).tril().bool()
    return torch.cat([text, same.expand(len(places), -1, -1)], -1)


def _batch(written: Written, config: DrafterTraining, within: int) -> Written:
    """The texts of a round's step."""
    first = within * config.batch_texts % config.round_texts
    return written.rows(range(first, first + config.batch_texts))


def _optimiser(network: DrafterNetwork) -> torch.optim.Optimizer:
    """AdamW, each of whose groups holds its share of the learning rate."""
    weights = [weight for name, weight in network.named_parameters() if name != "masks"]
    groups: list[dict[str, Any]] = [{"params": [network.masks], "share": _MASK_RATE, "weight_decay": 0.0}]
    return torch.optim.AdamW([*groups, {"params": weights, "share": 1.0}] if weights else groups, weight_decay=0.01)


def _checked(drafter: Drafter, lm: FrozenLM, config: DrafterTraining) -> Drafter:
    drafter.check(lm.identity)
    check_same_settings("the drafter", drafter.training.get("config", {}), settings_record(config))
    return drafter
