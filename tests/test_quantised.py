"""Laws of stored vectors: rounding is bounded, and what is written is what comes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prototokens import InputError
from prototokens.files.quantised import STORES, StoredVectors, rounded

SEEDS = st.integers(0, 1000)


def some(count: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed)) * scale


@given(SEEDS, st.sampled_from([1e-4, 1.0, 300.0]))
def test_rounding_is_bounded(seed: int, scale: float) -> None:
    v = some(3, seed, scale)
    assert torch.equal(rounded(v, "float32"), v)
    assert torch.allclose(rounded(v, "float16"), v, rtol=2**-11, atol=2**-25)
    half_a_step = v.abs().amax(-1, keepdim=True) / 127 / 2
    assert ((rounded(v, "int8") - v).abs() <= half_a_step * 1.0001).all()


@given(SEEDS, st.lists(st.sampled_from(STORES), max_size=8))
def test_what_is_stored_is_what_was_rounded(seed: int, stores: list[str]) -> None:
    v = some(len(stores), seed)
    stored = StoredVectors.of(v, stores)
    again = StoredVectors.from_tensors(stored.tensors())
    order = torch.randperm(len(v), generator=torch.Generator().manual_seed(seed))
    for held in (stored, again):
        assert len(held) == len(v)
        assert held.counts == {name: stores.count(name) for name in STORES}
        taken = held.take(order)
        for row, number in zip(taken, order.tolist(), strict=True):
            assert torch.equal(row, rounded(v[number], stores[number]))


def test_zero_vectors_stay_zero() -> None:
    assert torch.equal(rounded(torch.zeros(2, 3), "int8"), torch.zeros(2, 3))


def test_rounding_again_changes_nothing() -> None:
    for store in STORES:
        once = rounded(some(5, 1), store)
        assert torch.allclose(rounded(once, store), once, rtol=1e-6)


def test_parts_that_do_not_fit_are_refused() -> None:
    good = StoredVectors.of(some(3, 0), ["int8", "float16", "float32"]).tensors()
    wrong = {
        "store": torch.tensor([0, 1, 1]),
        "scale": torch.tensor([float("nan")]),
        "int8": good["int8"].float(),
        "float16": good["float16"] * torch.inf,
        "float32": good["float32"][:, :3],
    }
    for name, value in wrong.items():
        with pytest.raises(InputError, match=r"vectors stored in|scales"):
            StoredVectors.from_tensors(good | {name: value})
    with pytest.raises(InputError, match="vectors stored in"):
        StoredVectors.from_tensors(good | {"store": torch.tensor([0, 1, 3])})
