"""Laws of drafters: what their network computes, and that what is saved is what is loaded, for its model only."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from drafters import CONFIG, random_drafter
from families import family
from prototokens import Drafter, FrozenLM, InputError, generate, load_drafter
from prototokens.drafting.drafter import DrafterConfig, DrafterNetwork, read_drafter, save_drafter, shipped_drafter
from prototokens.drafting.generating import DraftTree
from prototokens.files.record import read_record, write_record
from prototokens.lm.frozen import EmbeddingStatistics

KIND = "a drafter"


def inputs_of(lm: FrozenLM, n: int) -> tuple[Tensor, Tensor]:
    """Hidden states (N, H) and embeddings (N, D) of tokens of a text."""
    ids = torch.randint(256, (n,), generator=torch.Generator().manual_seed(4))
    return lm.hidden_states(ids[None], -1)[0], lm.embed(ids)


def same(a: Drafter, b: Drafter) -> bool:
    weights, others = a.network.state_dict(), b.network.state_dict()
    equal = weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    return equal and all(getattr(a, name) == getattr(b, name) for name in ("config", "model", "training", "acceptance"))


# The network.


def test_the_networks_formula() -> None:
    """m_i = mean + s (a_i + W_i gelu(U [h / rms(h); (x - mean) / s] + b_lag)), written out."""
    network = DrafterNetwork(DrafterConfig(n_masks=2, hidden_width=5), 3, 4)
    network.begin_at(EmbeddingStatistics(torch.tensor([0.5, -1.0, 2.0]), 0.7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    state, token = (torch.randn(6, n, generator=generator) for n in (4, 3))
    lag = torch.tensor([0, 1, 2, 3, 9, 0])
    vectors = network(state, token, lag)
    assert vectors.shape == (6, 2, 3)
    w = dict(network.named_parameters())
    mean, std = network.embedding_mean, network.embedding_std
    for n in range(6):
        h, x = state[n], token[n]
        features = torch.cat([h / (h**2).mean().sqrt(), (x - mean) / std])
        hidden = w["inner.weight"] @ features + w["inner.bias"] + w["by_lag"][min(int(lag[n]), 2)]
        offsets = (w["outer.weight"] @ functional.gelu(hidden) + w["outer.bias"]).view(2, 3)
        assert torch.allclose(vectors[n], mean + std * (w["masks"] + offsets), atol=1e-5)


def test_without_a_hidden_layer_the_context_says_nothing() -> None:
    network = DrafterNetwork(DrafterConfig(n_masks=2, hidden_width=0), 3, 4)
    assert not network.reads_context
    assert [name for name, _ in network.named_parameters()] == ["masks"]
    with torch.no_grad():
        network.masks.copy_(torch.arange(6.0).view(2, 3))
    vectors = network(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3), torch.zeros(2))
    assert torch.equal(vectors, torch.arange(6.0).view(1, 2, 3).expand(2, -1, -1))


@pytest.mark.parametrize("hidden_width", [0, 16])
def test_an_untrained_drafter_gives_the_mean_embedding(lm: FrozenLM, hidden_width: int) -> None:
    state = torch.get_rng_state()
    drafter = Drafter.untrained(lm, DrafterConfig(3, hidden_width))
    assert torch.equal(torch.get_rng_state(), state)
    vectors = drafter.network(*inputs_of(lm, 5), torch.arange(5))
    assert torch.equal(vectors, lm.embedding_statistics.mean.expand(5, 3, -1))
    assert drafter.network.embedding_std.item() == pytest.approx(lm.embedding_statistics.std)
    assert drafter.acceptance == (0.5, 0.25, 0.125)
    assert drafter.model == lm.identity
    assert drafter.training["step"] == 0


def test_the_seed_draws_the_network(llama: FrozenLM) -> None:
    first, again, other = (Drafter.untrained(llama, CONFIG, seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert first.name == again.name != other.name
    assert first.name.startswith("drafter-")


def test_weights_are_counted(llama: FrozenLM) -> None:
    wide, narrow = (Drafter.untrained(llama, DrafterConfig(3, n)) for n in (16, 0))
    width = llama.width
    assert narrow.n_weights == 3 * width
    assert wide.n_weights == 3 * width + (2 * width + 1) * 16 + 4 * 16 + (16 + 1) * 3 * width


# Files.


@pytest.mark.parametrize("config", [CONFIG, DrafterConfig(1, 0), DrafterConfig(6, 3)], ids=str)
def test_what_is_loaded_is_what_was_saved(lm: FrozenLM, config: DrafterConfig, tmp_path: Path) -> None:
    drafter = replace(random_drafter(lm, config), training={"step": 3, "config": {"lr": 0.5}})
    path = save_drafter(tmp_path / "d.safetensors", drafter)
    loaded = load_drafter(path)
    assert same(loaded, drafter)
    assert loaded.name == drafter.name
    arguments = (*inputs_of(lm, 4), torch.arange(4))
    assert torch.equal(loaded.network(*arguments), drafter.network(*arguments))


def test_a_loaded_drafter_drafts_the_same(llama: FrozenLM, tmp_path: Path) -> None:
    drafter = random_drafter(llama)
    options: Any = {"max_new_tokens": 12, "tree": DraftTree(max_nodes=12, position_cost=0)}
    first = generate(llama, "To be", drafter=drafter, **options)
    again = generate(llama, "To be", drafter=load_drafter(save_drafter(tmp_path / "d", drafter)), **options)
    assert (first.accepted, first.verified, first.text) == (again.accepted, again.verified, again.text)


def test_half_precision_halves_the_file(llama: FrozenLM, tmp_path: Path) -> None:
    drafter = random_drafter(llama, DrafterConfig(3, 64))
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
    path = save_drafter(tmp_path / "d", random_drafter(llama, DrafterConfig(1, 0)))
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
        (lambda t, r: r["config"].update(n_masks=4), "its record cannot be read"),
        (lambda t, r: r["config"].update(n_masks=65), "n_masks is 65; it must be from 1 to 64"),
        (lambda t, r: r["model"].pop("fingerprint"), "its record cannot be read"),
        (lambda t, r: r.update(acceptance=[0.5, 0.4]), r"acceptance is \(0.5, 0.4\); it must be 3 shares from 0 to 1"),
        (lambda t, r: r.update(acceptance=[0.5, 0.4, 1.5]), "it must be 3 shares from 0 to 1"),
        (lambda t, r: r.update(acceptance=[0.5, 0.4, "x"]), "its record cannot be read"),
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
        "acceptance": list(drafter.acceptance),
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
        ({"n_masks": 0}, "n_masks is 0; it must be from 1 to 64"),
        ({"n_masks": 65}, "n_masks is 65; it must be from 1 to 64"),
        ({"hidden_width": -1}, "hidden_width is -1; it must be from 0 to 65536"),
        ({"hidden_width": 65537}, "hidden_width is 65537; it must be from 0 to 65536"),
    ],
)
def test_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DrafterConfig(**options)
    DrafterConfig(64, 0)
    DrafterConfig(1, 65536)
