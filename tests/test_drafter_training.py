"""Laws of training a drafter: it learns what the model writes, place by place, and goes on where it stopped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from drafters import VERIFIERS, by_hand, random_drafter
from families import build, counted, family, tokenizer
from prototokens import Drafter, FrozenLM, InputError, generate
from prototokens.drafting import train_drafter as training
from prototokens.drafting.drafter import read_drafter, save_drafter
from prototokens.drafting.generating import DraftTree
from prototokens.drafting.network import DrafterConfig
from prototokens.drafting.train_drafter import (
    DrafterProgress,
    DrafterTraining,
    draft_at,
    most_frequent,
    round_of_texts,
    train_drafter,
)
from prototokens.drafting.written import Written

CONFIG = DrafterTraining(
    drafter=DrafterConfig(2, 2, 8, 8), prompt_lengths=(2, 4), new_tokens=7, round_texts=4,
    batch_texts=2, places=3, steps=6,
)  # fmt: skip


def draw(length: int, count: int, seed: int) -> Tensor:
    return torch.randint(97, 123, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=VERIFIERS)
def verifier(request: pytest.FixtureRequest) -> FrozenLM:
    """Each family that can verify drafts, in turn."""
    return family(request.param)


# Texts and places.


def test_a_round_is_what_the_model_writes_greedily(verifier: FrozenLM) -> None:
    written = round_of_texts(verifier, draw, CONFIG, 3, 4)
    assert written.prompt_length in CONFIG.prompt_lengths
    assert written.ids.shape == (4, written.prompt_length + CONFIG.new_tokens)
    for row, end in zip(written.ids, written.ends.tolist(), strict=True):
        generation = generate(verifier, row[: written.prompt_length], max_new_tokens=CONFIG.new_tokens)
        text = row[written.prompt_length : end].tolist()
        assert generation.ids.tolist() == [*text, *row[end : end + 1].tolist()]
        assert generation.stopped == (end < len(row))
    again = round_of_texts(verifier, draw, CONFIG, 3, 4)
    assert torch.equal(again.ids, written.ids)
    others = [
        round_of_texts(verifier, draw, CONFIG, 4, 4),
        round_of_texts(verifier, draw, replace(CONFIG, seed=1), 3, 4),
    ]
    for other in others:
        assert other.ids.shape != written.ids.shape or not torch.equal(other.ids, written.ids)
    lengths = {round_of_texts(verifier, draw, CONFIG, number, 1).prompt_length for number in range(8)}
    assert lengths == set(CONFIG.prompt_lengths)


def test_stop_tokens_end_texts() -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    lm.model.generation_config.eos_token_id = None
    plain = round_of_texts(lm, draw, CONFIG, 0, 6)
    length = plain.ids.shape[1]
    stop = int(plain.ids[2, -2])  # a token that one of the texts comes to
    lm.model.generation_config.eos_token_id = [263, stop]
    written = round_of_texts(lm, draw, CONFIG, 0, 6)
    assert torch.equal(written.ids, plain.ids)
    for row, end in zip(written.ids.tolist(), written.ends.tolist(), strict=True):
        behind = row[plain.prompt_length :]
        assert end == (plain.prompt_length + behind.index(stop) if stop in behind else length)
    assert written.ends[2] < length


def test_places_lie_where_all_masks_have_a_token_to_draft() -> None:
    written = Written(torch.zeros(5, 13, dtype=torch.long), 4, torch.full((5,), 13))
    config = replace(CONFIG, places=400)
    chosen = training._places(written, config, random.Random("places"))
    places, lags, n_masks = chosen.places, chosen.lags, chosen.n_masks
    assert places.shape == lags.shape == n_masks.shape == (5, 400)
    assert set(n_masks.flatten().tolist()) == {0, 1, 2}
    assert (training._places(written, config, random.Random("places"), 1).n_masks == 1).all()
    whole = replace(
        config, drafter=DrafterConfig(2, 2, 8, 0)
    )  # without a reader, what a mask less would teach is known
    assert (training._places(written, whole, random.Random("places")).n_masks == 2).all()
    assert set(places.flatten().tolist()) == set(range(3, 13 - 2 - 2 + 1))  # from the prompt's last token on
    assert set(lags.flatten().tolist()) == {0, 1, 2}
    counts = torch.bincount(lags.flatten()).tolist()
    assert counts[0] > 1.5 * counts[1] > 1.5 * 1.5 * counts[2]


def test_every_text_of_a_round_is_used_twice() -> None:
    written = Written(torch.arange(4).view(4, 1), 1, torch.arange(4))
    used = [training._batch(written, CONFIG, within) for within in range(CONFIG.round_steps)]
    assert sorted(row for batch in used for row in batch.ids.flatten().tolist()) == sorted([0, 1, 2, 3] * 2)
    assert all(torch.equal(batch.ids[:, 0], batch.ends) for batch in used)


def test_the_rate_rises_and_falls() -> None:
    config = replace(CONFIG, steps=100, lr=0.5)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == 0.5 / 20
    assert max(rates) <= 0.5
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[50] == 0.25
    assert rates[-1] == pytest.approx(0.5 / 100)


# Training.

Kept = list[tuple[Drafter, dict[str, Tensor], DrafterProgress]]


def trained(
    lm: FrozenLM, folder: Path, config: DrafterTraining = CONFIG, **options: Any
) -> tuple[Drafter, list[DrafterProgress]]:
    """Train, and write what is kept after each step to a file of the step's name."""
    steps: list[DrafterProgress] = []

    def keep(drafter: Drafter, unfinished: dict[str, Tensor], progress: DrafterProgress) -> None:
        save_drafter(folder / str(progress.step), drafter, unfinished=unfinished)
        steps.append(progress)

    folder.mkdir(exist_ok=True)
    return train_drafter(lm, draw, config, keep=keep, **options), steps


def test_training_goes_on_where_it_stopped_and_ends_the_same(llama: FrozenLM, tmp_path: Path) -> None:
    whole, steps = trained(llama, tmp_path / "whole")
    assert [p.step for p in steps] == [1, 2, 3, 4, 5, 6]
    assert [p.samples for p in steps] == [6 * n for n in range(1, 7)]  # two texts, three places
    for step in (1, 4, 5):  # 4 steps are a round
        resumed, later = trained(llama, tmp_path / "resumed", resume=read_drafter(tmp_path / "whole" / str(step)))
        assert [p.step for p in later] == list(range(step + 1, 7))
        assert [p.loss_nats for p in later] == [p.loss_nats for p in steps[step:]]
        assert [p.samples for p in later] == [p.samples for p in steps[step:]]
        assert resumed.name == whole.name
        assert (resumed.acceptance, resumed.training) == (whole.acceptance, whole.training)
        for path in (tmp_path / "resumed").iterdir():
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
            path.unlink()


def test_a_finished_training_is_left_as_it_is(llama: FrozenLM, tmp_path: Path) -> None:
    whole, _ = trained(llama, tmp_path)
    kept = read_drafter(tmp_path / "6")
    assert kept[1] == {}
    with counted(llama) as calls:
        again, steps = trained(llama, tmp_path / "again", resume=kept)
    assert (calls.forward, steps) == ([], [])
    assert (again.name, again.acceptance) == (whole.name, whole.acceptance)


def test_another_training_is_not_resumed(llama: FrozenLM, tmp_path: Path) -> None:
    trained(llama, tmp_path)
    kept = read_drafter(tmp_path / "2")
    with pytest.raises(InputError, match=r"was trained with other settings \(lr\): give the same, or begin anew"):
        train_drafter(llama, draw, replace(CONFIG, lr=0.5), resume=kept)
    with pytest.raises(InputError, match=r"other settings \(drafter\)"):
        train_drafter(llama, draw, replace(CONFIG, drafter=DrafterConfig(2, 2, 4, 8)), resume=kept)
    with pytest.raises(InputError, match="this drafter belongs to LlamaForCausalLM"):
        train_drafter(family("qwen3"), draw, CONFIG, resume=kept)


def test_training_leaves_the_model_as_it_was(verifier: FrozenLM, tmp_path: Path) -> None:
    weights = {name: weight.clone() for name, weight in verifier.model.state_dict().items()}
    state = torch.get_rng_state()
    before = Drafter.untrained(verifier, CONFIG.drafter)
    drafter, _ = trained(verifier, tmp_path, replace(CONFIG, steps=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], weight) for name, weight in verifier.model.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in verifier.model.parameters())
    assert not any(module.training for module in verifier.model.modules())
    changed = [
        not torch.equal(a, b) for a, b in zip(drafter.network.parameters(), before.network.parameters(), strict=True)
    ]
    assert all(changed)
    buffers = zip(drafter.network.buffers(), before.network.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in buffers)


@pytest.mark.parametrize("width", [0, 8])
def test_masks_have_a_higher_rate(llama: FrozenLM, width: int) -> None:
    """Adam's first change of a weight is its learning rate, wherever there is a gradient."""
    config = replace(CONFIG, drafter=DrafterConfig(2, 2, width, width), steps=1)
    weights = dict(train_drafter(llama, draw, config).network.named_parameters())
    rate = config.rate(0)
    assert weights["masks"].abs().max().item() == pytest.approx(20 * rate, rel=1e-3)
    if width:
        assert weights["outer.bias"].abs().max().item() == pytest.approx(rate, rel=1e-3)


def ring(size: int) -> FrozenLM:
    """A model that writes 0, 1, ... size - 1, 0, ...: its layers add nothing, and its head reads the next token."""
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        rows = torch.nn.functional.normalize(torch.randn(size, 32), dim=-1)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.copy_(2 * rows.roll(1, 0))
    return FrozenLM(model, tokenizer())


@pytest.mark.parametrize("reader_width", [0, 16])
def test_what_is_learned_saves_passes(reader_width: int) -> None:
    lm = ring(8)
    prompts: Callable[[int, int, int], Tensor] = lambda length, count, seed: draw(length, count, seed) % 8  # noqa: E731
    config = replace(CONFIG, drafter=DrafterConfig(2, 2, 16, reader_width), steps=80, lr=0.02, places=4)
    losses: list[float] = []
    drafter = train_drafter(lm, prompts, config, keep=lambda d, u, p: losses.append(p.loss_nats))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert drafter.acceptance[-1][0] > 0.7
    tree = DraftTree(width=1, lookup=False, position_cost=0)
    ids = torch.tensor([3, 4, 5])
    plain, drafted = (generate(lm, ids, drafter=d, max_new_tokens=30, tree=tree) for d in (None, drafter))
    assert drafted.ids.tolist() == plain.ids.tolist() == [(6 + i) % 8 for i in range(30)]
    assert drafted.passes < 0.7 * plain.passes


def test_acceptance_is_of_texts_that_no_step_saw(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the training reports is counted one place after another, by passes of their own, on a round of its own."""
    rounds: list[tuple[int, int]] = []
    write = training.round_of_texts

    def noted(lm: FrozenLM, draw: Any, config: DrafterTraining, number: int, count: int) -> Written:
        rounds.append((number, count))
        return write(lm, draw, config, number, count)

    monkeypatch.setattr(training, "round_of_texts", noted)
    network = random_drafter(llama, CONFIG.drafter).network
    shares = training.acceptance(llama, network, draw, CONFIG)
    assert rounds == [(-1, 32)]
    written = write(llama, draw, CONFIG, -1, 32)
    for n_masks, row in enumerate(shares):
        rng = random.Random(f"{CONFIG.seed} judged")
        n_followed, n_whole = [0, 0], 0
        for first in range(0, 32, 4):
            batch = Written(written.ids[first : first + 4], written.prompt_length, written.ends[first : first + 4])
            chosen = training._places(batch, CONFIG, rng, n_masks)
            for text, ids in enumerate(batch.ids):
                for place, lag in zip(chosen.places[text].tolist(), chosen.lags[text].tolist(), strict=True):
                    if place + 3 < batch.ends[text]:
                        n_whole += 1
                        logits = by_hand(llama, network, ids, place, lag, n_masks)
                        right = (logits.argmax(-1) == ids[place + 2 : place + 4]).tolist()
                        n_followed = [n_followed[0] + right[0], n_followed[1] + all(right)]
        assert row == pytest.approx([n / n_whole for n in n_followed])
    assert len(shares) == 3
    rounds.clear()
    train_drafter(llama, draw, CONFIG)
    assert rounds == [(0, 4), (1, 4), (-1, 32)]


# Refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"places": 0}, "places is 0; it must be at least 1"),
        ({"batch_texts": 0}, "batch_texts is 0; it must be at least 1"),
        ({"round_texts": -1}, "round_texts is -1; it must be at least 1"),
        ({"round_texts": 9, "batch_texts": 8}, "round_texts is 9, which batch_texts, 8, does not divide"),
        ({"prompt_lengths": ()}, r"prompt_lengths are \(\); each must be at least 1"),
        ({"prompt_lengths": (4, 0)}, r"prompt_lengths are \(4, 0\)"),
        ({"new_tokens": 4}, "new_tokens is 4; 4 drafts need at least 5"),
        ({"lr": 0}, "lr is 0; it must be a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DrafterTraining(**options)
    DrafterTraining(new_tokens=5)


def test_a_model_that_cannot_verify_or_is_too_short_is_refused_at_once(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match="MambaForCausalLM cannot verify drafts"):
        train_drafter(family("mamba"), draw, CONFIG)
    with counted(llama) as calls, pytest.raises(InputError, match="65 input positions are asked for"):
        train_drafter(llama, draw, replace(CONFIG, new_tokens=59))
    assert calls.forward == []
    train_drafter(llama, draw, replace(CONFIG, new_tokens=58, steps=1))


def test_a_source_that_is_too_small_is_told_before_the_first_pass(llama: FrozenLM) -> None:
    def scarce(length: int, count: int, seed: int) -> Tensor:
        if length == 4:
            raise InputError("the source has no 32 texts of 4 tokens")
        return draw(length, count, seed)

    with counted(llama) as calls, pytest.raises(InputError, match="no 32 texts of 4 tokens"):
        train_drafter(llama, scarce, CONFIG)
    assert calls.forward == []


def test_the_tokens_that_are_drafted_are_the_most_frequent_of_the_texts(llama: FrozenLM) -> None:
    config = replace(CONFIG, drafter=DrafterConfig(1, 2, 4, 4, vocabulary=5), steps=2 * CONFIG.round_steps)
    written = [training.round_of_texts(llama, draw, config, number, config.round_texts) for number in range(2)]
    tokens = [t for w in written for row, end in zip(w.ids, w.ends, strict=True) for t in row[:end]]
    counts = Counter(int(token) for token in tokens)

    drafter = train_drafter(llama, draw, config)

    assert drafter.vocabulary is not None
    ids = drafter.vocabulary.tolist()
    assert ids == sorted(ids)
    assert len(ids) == 5
    assert min(counts[token] for token in ids) >= max(n for token, n in counts.items() if token not in ids)
    assert most_frequent(torch.tensor([3, 0, 5, 5]), 2).tolist() == [2, 3]  # type: ignore[union-attr]
    assert most_frequent(torch.tensor([3, 0, 5, 5]), 3).tolist() == [0, 2, 3]  # type: ignore[union-attr]
    assert most_frequent(torch.tensor([0, 0, 5]), 2).tolist() == [2]  # type: ignore[union-attr]
    assert most_frequent(torch.tensor([3, 0]), 2) is None
    assert most_frequent(torch.tensor([3, 0]), 0) is None


def test_a_draft_of_a_token_outside_the_vocabulary_is_never_right(llama: FrozenLM) -> None:
    network = random_drafter(llama, DrafterConfig(1, 2, 4, 4)).network
    every = torch.arange(llama.vocabulary)
    shares = [training.acceptance(llama, network, draw, CONFIG, ids) for ids in (None, every, every[:1])]
    assert shares[0] == shares[1]
    assert sum(map(sum, shares[2])) <= sum(map(sum, shares[0]))
    written = training.round_of_texts(llama, draw, CONFIG, 0, 4)
    places = training._places(written, CONFIG, random.Random(0))
    nothing = torch.tensor([llama.vocabulary])
    assert not draft_at(llama, network, written, places, nothing).is_right.any()
