"""Laws of drafters: what their network computes, and that what is saved is what is loaded, for its model only."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from drafters import CONFIG, oracle, random_drafter
from families import build, family, tokenizer
from prototokens import Drafter, FrozenLM, InputError, generate, load_drafter
from prototokens.drafting.drafter import read_drafter, save_drafter, shipped_drafter
from prototokens.drafting.generating import DraftTree, _Drafts
from prototokens.drafting.network import DrafterConfig, DrafterNetwork
from prototokens.drafting.states import head_of_some, logits_of, states_kept
from prototokens.drafting.tree import candidates
from prototokens.files.record import read_record, write_record
from prototokens.lm.frozen import EmbeddingStatistics

KIND = "a drafter"


def inputs_of(lm: FrozenLM, n: int) -> tuple[Tensor, Tensor]:
    """States (N, H) and embeddings (N, D) of tokens of a text."""
    ids = torch.randint(256, (n,), generator=torch.Generator().manual_seed(4))
    with states_kept(lm) as states:
        lm.next_token_logits(ids)
    return states[0][0], lm.embed(ids)


def same(a: Drafter, b: Drafter) -> bool:
    weights, others = a.network.state_dict(), b.network.state_dict()
    equal = weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    return equal and all(getattr(a, name) == getattr(b, name) for name in ("config", "model", "training", "acceptance"))


# The network.


def random_network(config: DrafterConfig) -> DrafterNetwork:
    """A network for embeddings of 3 numbers and states of 4, none of whose weights is zero."""
    network = DrafterNetwork(config, 3, 4)
    network.begin_at(EmbeddingStatistics(torch.tensor([0.5, -1.0, 2.0]), 0.7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return network


def unit(state: Tensor) -> Tensor:
    return state / (state**2).mean().sqrt()


def test_the_formula_of_the_inputs() -> None:
    """m_i = mean + s (a_i + W_i gelu(U [n(h); (x - mean) / s] + b_lag)), written out."""
    network = random_network(DrafterConfig(n_masks=2, n_drafts=3, input_width=5, reader_width=6))
    generator = torch.Generator().manual_seed(1)
    state, token = (torch.randn(6, n, generator=generator) for n in (4, 3))
    lag = torch.tensor([0, 1, 2, 3, 9, 0])
    vectors = network.inputs(state, token, lag)
    assert vectors.shape == (6, 2, 3)
    w = dict(network.named_parameters())
    mean, std = network.embedding_mean, network.embedding_std
    for n in range(6):
        features = torch.cat([unit(state[n]), (token[n] - mean) / std])
        hidden = w["inner.weight"] @ features + w["inner.bias"] + w["by_lag"][min(int(lag[n]), 3)]
        offsets = (w["outer.weight"] @ functional.gelu(hidden) + w["outer.bias"]).view(2, 3)
        assert torch.allclose(vectors[n], mean + std * (w["masks"] + offsets), atol=1e-4)


def test_the_formula_of_the_reading() -> None:
    """r_i = g_i + rms(h) V gelu(R [n(g_i); n(h); (y_i - mean) / s] + c_i), written out."""
    network = random_network(DrafterConfig(n_masks=2, n_drafts=3, input_width=5, reader_width=6))
    generator = torch.Generator().manual_seed(1)
    at_mask, state, before = (torch.randn(4, n, generator=generator) for n in (4, 4, 3))
    depth = torch.tensor([0, 1, 2, 0])
    read = network.read(at_mask, state, before, depth)
    w = dict(network.named_parameters())
    for n in range(4):
        embedding = (before[n] - network.embedding_mean) / network.embedding_std
        features = torch.cat([unit(at_mask[n]), unit(state[n]), embedding])
        hidden = w["read_in.weight"] @ features + w["read_in.bias"] + w["by_depth"][depth[n]]
        change = w["read_out.weight"] @ functional.gelu(hidden) + w["read_out.bias"]
        assert torch.allclose(read[n], at_mask[n] + (state[n] ** 2).mean().sqrt() * change, atol=1e-4)


def test_where_there_is_no_mask_a_draft_is_read_all_the_same() -> None:
    network = random_network(DrafterConfig(n_masks=0, n_drafts=3, input_width=5, reader_width=6))
    assert not hasattr(network, "inner")
    at_mask = torch.zeros(2, 4, requires_grad=True)
    read = network.read(at_mask, torch.ones(2, 4), torch.ones(2, 3), torch.tensor([0, 1]))
    assert read.isfinite().all()
    assert not torch.equal(read[0], read[1])
    read.sum().backward()
    assert at_mask.grad is not None
    assert at_mask.grad.isfinite().all()


def test_without_its_networks_a_drafter_is_its_masks() -> None:
    network = random_network(DrafterConfig(2, 2, input_width=0, reader_width=0))
    assert not network.has_reader
    assert [name for name, _ in network.named_parameters()] == ["masks"]
    vectors = network.inputs(torch.ones(2, 4), torch.ones(2, 3), torch.zeros(2, dtype=torch.long))
    expected = network.embedding_mean + network.embedding_std * network.masks
    assert torch.equal(vectors, expected.expand(2, -1, -1))
    at_mask = torch.arange(8.0).view(2, 4)
    assert torch.equal(network.read(at_mask, -at_mask, vectors[0], torch.tensor([0, 1])), at_mask)


@pytest.mark.parametrize("width", [0, 16])
def test_an_untrained_drafter_gives_the_mean_embedding_and_reads_what_is_at_the_masks(lm: FrozenLM, width: int) -> None:
    rng_state = torch.get_rng_state()
    drafter = Drafter.untrained(lm, DrafterConfig(3, 3, width, width))
    assert torch.equal(torch.get_rng_state(), rng_state)
    states, embeddings = inputs_of(lm, 5)
    vectors = drafter.network.inputs(states, embeddings, torch.arange(5))
    assert torch.equal(vectors, lm.embedding_statistics.mean.expand(5, 3, -1))
    assert torch.equal(drafter.network.read(states, states.flip(0), embeddings, torch.zeros(5).long()), states)
    assert drafter.network.embedding_std.item() == pytest.approx(lm.embedding_statistics.std)
    assert drafter.acceptance == ((0, 0, 0), (0.5, 0, 0), (0.5, 0.25, 0), (0.5, 0.25, 0.125))
    assert drafter.model == lm.identity
    assert drafter.training["step"] == 0


def test_the_seed_draws_the_network(llama: FrozenLM) -> None:
    first, again, other = (Drafter.untrained(llama, CONFIG, seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert first.name == again.name != other.name
    assert first.name.startswith("drafter-")


def test_weights_are_counted(llama: FrozenLM) -> None:
    whole, narrow = (Drafter.untrained(llama, c) for c in (DrafterConfig(2, 3, 16, 8), DrafterConfig(3, 3, 0, 0)))
    width = llama.width
    assert narrow.n_weights == 3 * width
    inputs = 2 * width + (2 * width + 1) * 16 + 4 * 16 + (16 + 1) * 2 * width
    assert whole.n_weights == inputs + (3 * width + 1) * 8 + 3 * 8 + (8 + 1) * width


# Files.


@pytest.mark.parametrize(
    "config", [CONFIG, DrafterConfig(1, 1, 0, 0), DrafterConfig(6, 7, 3, 4), DrafterConfig(0, 2)], ids=str
)
def test_what_is_loaded_is_what_was_saved(lm: FrozenLM, config: DrafterConfig, tmp_path: Path) -> None:
    drafter = replace(random_drafter(lm, config), training={"step": 3, "config": {"lr": 0.5}})
    path = save_drafter(tmp_path / "d.safetensors", drafter)
    loaded = load_drafter(path)
    assert same(loaded, drafter)
    assert loaded.name == drafter.name
    arguments = (*inputs_of(lm, 4), torch.arange(4))
    assert torch.equal(loaded.network.inputs(*arguments), drafter.network.inputs(*arguments))
    arguments = (arguments[0], *arguments[:2], torch.zeros(4, dtype=torch.long))
    assert torch.equal(loaded.network.read(*arguments), drafter.network.read(*arguments))


def test_loading_draws_nothing_at_random(llama: FrozenLM, tmp_path: Path) -> None:
    path, state = save_drafter(tmp_path / "d", random_drafter(llama)), torch.get_rng_state()
    assert all(weight.requires_grad for weight in load_drafter(path).network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_drafter_drafts_the_same(llama: FrozenLM, tmp_path: Path) -> None:
    drafter = random_drafter(llama)
    options: Any = {"max_new_tokens": 12, "tree": DraftTree(max_nodes=12, position_cost=0)}
    first = generate(llama, "To be", drafter=drafter, **options)
    again = generate(llama, "To be", drafter=load_drafter(save_drafter(tmp_path / "d", drafter)), **options)
    assert (first.accepted, first.verified, first.text) == (again.accepted, again.verified, again.text)


def test_half_precision_halves_the_file(llama: FrozenLM, tmp_path: Path) -> None:
    drafter = random_drafter(llama, DrafterConfig(3, 3, 64, 0))
    whole = save_drafter(tmp_path / "whole", drafter)
    half = save_drafter(tmp_path / "half", drafter, dtype=torch.float16)
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    loaded = load_drafter(half).network.state_dict()
    for name, weight in drafter.network.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight.half().float())


def test_what_a_training_needs_is_passed_over(llama: FrozenLM, tmp_path: Path) -> None:
    drafter = random_drafter(llama)
    unfinished = {"optimiser.0.step": torch.tensor(3.0), "moments": torch.arange(5.0) / 3}
    path = save_drafter(tmp_path / "d", drafter, unfinished=unfinished, dtype=torch.float16)
    loaded, kept = read_drafter(path)
    assert same(loaded, load_drafter(path))
    assert kept.keys() == unfinished.keys()
    assert all(torch.equal(kept[name], unfinished[name]) for name in kept)  # whatever the weights' dtype
    assert read_drafter(save_drafter(path, drafter, overwrite=True))[1] == {}


def test_a_file_is_not_replaced_unasked(llama: FrozenLM, tmp_path: Path) -> None:
    path = save_drafter(tmp_path / "d", random_drafter(llama))
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists"):
        save_drafter(path, random_drafter(llama, seed=1))
    assert path.read_bytes() == before
    save_drafter(path, random_drafter(llama, seed=1), overwrite=True)
    assert same(load_drafter(path), random_drafter(llama, seed=1))
    assert list(tmp_path.iterdir()) == [path]


def test_damage_is_refused(llama: FrozenLM, tmp_path: Path) -> None:
    path = save_drafter(tmp_path / "d", random_drafter(llama, DrafterConfig(1, 1, 0, 0)))
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(InputError) as caught:
            load_drafter(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(good[:-1])
    with pytest.raises(InputError, match="damaged"):
        load_drafter(path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path / "x", "proto-tokens", {}, {}, overwrite=False)
    with pytest.raises(InputError, match="holds proto-tokens, not a drafter"):
        load_drafter(path)
    with pytest.raises(InputError, match="no such file"):
        load_drafter(tmp_path / "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, r: r.pop("config"), "its record cannot be read"),
        (lambda t, r: r["config"].update(depth=2), "its record cannot be read"),
        (lambda t, r: r["config"].update(n_masks="3"), "its record cannot be read"),
        (lambda t, r: r["config"].update(n_masks=3), "its record cannot be read"),
        (lambda t, r: r["config"].update(n_drafts=65), "n_masks is 2 and n_drafts 65; n_drafts must be from 1 to 64"),
        (lambda t, r: r.pop("state_width"), "its record cannot be read"),
        (lambda t, r: r.update(state_width="x"), "its record cannot be read"),
        (lambda t, r: r.update(state_width=7), "its record cannot be read"),
        (lambda t, r: r.update(state_width=10**12), "its record cannot be read"),  # takes no memory
        (lambda t, r: r.update(state_width=10**30), "its record cannot be read"),
        (lambda t, r: r.update(training=None), "its record cannot be read"),
        (lambda t, r: r["model"].pop("fingerprint"), "its record cannot be read"),
        (lambda t, r: r["acceptance"].pop(), "acceptance must have 3 rows of 3 shares"),
        (lambda t, r: r["acceptance"][1].pop(), "acceptance must have 3 rows of 3 shares"),
        (lambda t, r: r["acceptance"][2].__setitem__(0, 1.5), "it must be shares from 0 to 1"),
        (lambda t, r: r["acceptance"][2].__setitem__(0, "x"), "its record cannot be read"),
        (lambda t, r: r.update(acceptance=3), "its record cannot be read"),
        (lambda t, r: r.pop("training"), "its record cannot be read"),
        (lambda t, r: t.pop("masks"), "its record cannot be read"),
        (lambda t, r: t.pop("outer.bias"), "its record cannot be read"),
        (lambda t, r: t.update(masks=torch.zeros(3)), "its record cannot be read"),
        (lambda t, r: t.update(masks=torch.zeros(3, 7)), "its record cannot be read"),
        (lambda t, r: t.update(more=torch.zeros(3)), "its record cannot be read"),
    ],
)
def test_a_record_that_makes_no_drafter_is_refused(llama: FrozenLM, tmp_path: Path, change: Any, message: str) -> None:
    path = save_drafter(tmp_path / "d", random_drafter(llama))
    tensors, record = read_record(path, KIND)
    change(tensors, record)
    write_record(path, KIND, tensors, record, overwrite=True)
    with pytest.raises(InputError, match=message) as caught:
        load_drafter(path)
    assert "\n" not in str(caught.value)


def test_the_record_is_all_of_a_drafter(llama: FrozenLM, tmp_path: Path) -> None:
    drafter = random_drafter(llama)
    _, record = read_record(save_drafter(tmp_path / "d", drafter), KIND)
    assert record == {
        "config": asdict(CONFIG),
        "model": asdict(llama.identity),
        "training": drafter.training,
        "acceptance": [list(row) for row in drafter.acceptance],
        "state_width": llama.width,
    }


# For whom, and bounds.


def test_a_drafter_serves_its_model_only(lm: FrozenLM, tmp_path: Path) -> None:
    drafter = load_drafter(save_drafter(tmp_path / "d", random_drafter(lm)))
    drafter.check(lm.identity)
    other = family("gpt2" if lm is not family("gpt2") else "llama")
    with pytest.raises(InputError, match=f"this drafter belongs to {lm.identity.name} .* not to {other.identity.name}"):
        drafter.check(other.identity)


def test_no_drafter_is_shipped_for_a_model_of_ones_own(lm: FrozenLM) -> None:
    assert shipped_drafter(lm.identity) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_masks": -1}, "n_masks is -1 and n_drafts 4; n_drafts must be from 1 to 64, and n_masks no more"),
        ({"n_masks": 5}, "n_masks is 5 and n_drafts 4"),
        ({"n_masks": 0, "n_drafts": 0}, "n_masks is 0 and n_drafts 0"),
        ({"n_drafts": 65}, "n_masks is 2 and n_drafts 65"),
        ({"input_width": -1}, "input_width is -1; it must be from 0 to 65536"),
        ({"input_width": 65537}, "input_width is 65537; it must be from 0 to 65536"),
        ({"reader_width": -1}, "reader_width is -1; it must be from 0 to 65536"),
        ({"reader_width": 0}, "n_masks is 2 and n_drafts 4; without a reader they must be equal"),
    ],
)
def test_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DrafterConfig(**options)
    DrafterConfig(64, 64, 0, 0)
    DrafterConfig(0, 1, 65536, 65536)


def test_a_vocabulary_is_kept_and_drafts_come_from_it(llama: FrozenLM, tmp_path: Path) -> None:
    ids = torch.tensor([3, 98, 99, 104])
    drafter = replace(random_drafter(llama), vocabulary=ids)
    loaded = load_drafter(save_drafter(tmp_path / "d", drafter, dtype=torch.float16))
    assert loaded.vocabulary is not None
    assert loaded.vocabulary.equal(ids)
    states = torch.randn(5, llama.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head_of_some(llama, ids)(states), logits_of(llama, states)[:, ids])
    assert {token for place in candidates(head_of_some(llama, ids)(states), 2, ids) for token, _ in place} <= {
        *ids.tolist()
    }
    prompt = torch.arange(97, 105)
    plain = generate(llama, prompt, max_new_tokens=20)
    assert generate(llama, prompt, drafter=loaded, max_new_tokens=20, tree=DraftTree(position_cost=0.0)).ids.equal(
        plain.ids
    )


@pytest.mark.parametrize("kind", [nn.Linear, type("Quantised", (nn.Linear,), {})])
def test_a_head_for_some_tokens_gives_their_logits(kind: type[nn.Linear]) -> None:
    lm, ids = FrozenLM(build("llama"), tokenizer()), torch.tensor([3, 98, 99, 104])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm.model.set_output_embeddings(kind(lm.model.config.hidden_size, lm.vocabulary, bias=True))
        states = torch.randn(2, 5, lm.model.config.hidden_size)
    torch.testing.assert_close(head_of_some(lm, ids)(states), logits_of(lm, states)[..., ids])


def test_the_reader_is_told_the_draft_before(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter, calls = random_drafter(llama), []
    read = drafter.network.read

    def recorded(*given: Tensor) -> Tensor:
        calls.append((*given, read(*given)))
        return calls[-1][-1]

    monkeypatch.setattr(drafter.network, "read", recorded)
    tree = DraftTree(width=1, lookup=False, position_cost=0)
    generate(llama, "To be", drafter=drafter, max_new_tokens=12, tree=tree)
    assert {int(depth) for *_, depth, _ in calls} == {0, 1, 2}
    for (_, state, _, depth, row), (_, next_state, before, next_depth, _) in pairwise(calls):
        if next_depth:
            assert next_depth == depth + 1
            assert next_state.equal(state)
            assert before.equal(llama.embed(logits_of(llama, row).argmax(-1)))


def test_a_position_costs_its_share_of_a_pass_in_tokens(llama: FrozenLM) -> None:
    rows = ((0.5, 0.25, 0.0), (0.5, 0.5, 0.0), (0.5, 0.5, 0.5))  # 2.5 tokens a pass at best
    drafter = replace(random_drafter(llama), acceptance=rows)
    assert _Drafts(llama, drafter, DraftTree(position_cost=0.1), None).price == pytest.approx(0.25)


def test_a_vocabulary_that_holds_the_text_changes_no_draft(llama: FrozenLM) -> None:
    drafter, tree = oracle(llama, "To be", 20), DraftTree(width=1, lookup=False, position_cost=0)
    whole = generate(llama, "To be", drafter=drafter, max_new_tokens=20, tree=tree)
    some = replace(drafter, vocabulary=whole.ids.unique())
    assert generate(llama, "To be", drafter=some, max_new_tokens=20, tree=tree).accepted == whole.accepted
    assert sum(whole.accepted) > 10


@pytest.mark.parametrize("ids", [[2, 1], [1, 1], [], [[1]], [1.0]], ids=str)
def test_a_vocabulary_that_is_none_is_refused(llama: FrozenLM, ids: list[Any]) -> None:
    with pytest.raises(InputError, match="a drafter's vocabulary must be ids in ascending order"):
        replace(random_drafter(llama), vocabulary=torch.tensor(ids))
