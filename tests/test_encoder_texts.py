"""Training texts of an encoder: their windows and sentences, what is held out, folders, and the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from encoders import PROSE, prose_file
from prototokens import FrozenLM, InputError
from prototokens.encoder.recipes import TextChoice
from prototokens.encoder.training import texts as training
from prototokens.encoder.training.texts import cached_training_texts, training_texts
from prototokens.texts.corpora import documents, stream
from prototokens.texts.sampling import sample, sentence_starts


@pytest.fixture
def source(tmp_path: Path) -> str:
    return prose_file(tmp_path)


def apart(text: str, length: int) -> list[str]:
    """The first letters of sentences, each beginning after the one before it."""
    starts = [i for i in sentence_starts(text) if len(text) - i >= length]
    kept = [i for n, i in enumerate(starts) if n == 0 or i - starts[n - 1] >= length]
    assert len(kept) == len(starts) or length > 6
    return [text[i : i + length] for i in kept]


def test_texts_are_every_window_and_sentences_and_no_text_is_held_out_and_trained_on(
    llama: FrozenLM, source: str
) -> None:
    train, validation = training_texts(llama, TextChoice(source), 6)
    whole = PROSE * 3
    head, tail = (llama.decode(texts.ids.long()) for texts in (train, validation))
    assert head + tail == whole
    assert len(tail) == pytest.approx(len(whole) / 20, abs=60)
    for texts, text in ((train, head), (validation, tail)):
        for length in (1, 4, 6):
            windows = [llama.decode(ids) for ids in texts.windows(torch.arange(texts.n_windows(length)), length)]
            assert windows == [text[i : i + length] for i in range(len(text) - length + 1)]
        assert [llama.decode(ids) for ids in texts.sentences] == apart(text, 6)


def test_sentences_do_not_overlap(llama: FrozenLM, source: str) -> None:
    Path(source).write_text(PROSE * 30)
    train, _ = training_texts(llama, TextChoice(source), 60)
    sentences, text = [llama.decode(ids) for ids in train.sentences], llama.decode(train.ids.long())
    free_from = 0
    for sentence in sentences:
        free_from = text.index(sentence, free_from) + 60
    assert len(sentences) > len(text) / 60 / 3


def test_documents_that_are_shorter_than_the_longest_text_are_drawn_too(llama: FrozenLM, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["abc", "lm", "x", "defghijk"] * 12))
    train, _ = training_texts(llama, TextChoice(str(path), own_share=0.0), 8)
    for length, expected in ((8, {"defghijk"}), (3, {"abc", *("defghijk"[i : i + 3] for i in range(6))})):
        drawn = {llama.decode(ids) for ids in train.draw(length, 400, 0.0, seed=0)}
        assert drawn == expected


@pytest.mark.parametrize("own_share", [0.0, 0.9, 1.0])
def test_few_texts_may_all_be_of_one_kind(llama: FrozenLM, source: str, own_share: float) -> None:
    few, _ = training_texts(llama, TextChoice(source, texts=4, own_share=own_share), 6)
    n_sentences = 4 if own_share else 0
    assert (few.n_windows(6), len(few.sentences)) == (4 - n_sentences, n_sentences)
    begins = {tuple(ids[:3].tolist()) for ids in (few.sentences if own_share else few.ids.view(4, 6))}
    drawn = {tuple(ids.tolist()) for ids in few.draw(3, 100, 1.0, seed=0)}
    assert drawn == begins if own_share else begins <= drawn
    scored = few.evenly_spaced(6, 8)
    assert {kind: len(ids) for kind, ids in scored.items()} == {"windows": 4 - n_sentences, "own": n_sentences}


def test_a_long_document_is_tokenized_in_pieces(llama: FrozenLM, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = training_texts(llama, TextChoice(source), 6)
    monkeypatch.setattr(training, "_CHARACTERS_AT_ONCE", 100)
    pieces, _ = training_texts(llama, TextChoice(source), 6)
    assert torch.equal(pieces.ids, whole.ids)
    lengths = pieces.ends.diff(prepend=torch.zeros(1, dtype=torch.long))
    assert 1 < lengths.max() <= 100
    assert all(llama.decode(pieces.ids[end : end + 1]) == " " for end in pieces.ends[:-1].tolist())


FILES = {
    "b.txt": "Text of b.",
    "a/z.md": "# Heading\n\nText of z.",
    "a/y.rst": "Heading\n=======\n",
    "c.jsonl": '{"text": "one"}\n{"text": " "}\n{"text": "three"}\n',
    "d/e.csv": "number,text\n1,four\n",
    "empty.txt": " \n",
    "f.py": "not = 'read'",
    ".git/g.txt": "hidden",
    "d/.h.txt": "hidden",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "texts"


def test_a_folder_is_a_source_of_all_files_beneath_it(folder: Path) -> None:
    from_folder = documents(folder)
    assert [(d.name, d.text) for d in from_folder] == [
        ("a/y.rst", FILES["a/y.rst"]),
        ("a/z.md", FILES["a/z.md"]),
        ("b.txt", "Text of b."),
        ("c.jsonl:1", "one"),
        ("c.jsonl:3", "three"),
        ("d/e.csv:1", "four"),
    ]
    assert {d.split for d in from_folder} == {"any"}
    for split in ("train", "test"):
        assert documents(str(folder), split) == from_folder


def test_a_folder_is_read_file_by_file(folder: Path) -> None:
    (folder / "c.jsonl").write_bytes(b"\xff\n")
    from_folder = stream(folder)
    assert [next(from_folder).name for _ in range(3)] == ["a/y.rst", "a/z.md", "b.txt"]
    with pytest.raises(InputError, match=r"line 1 of .*c\.jsonl is not UTF-8"):
        next(from_folder)
    with pytest.raises(InputError, match=r"^e\.csv: row 1 of e\.csv has no column 'title': choose one of number, text"):
        list(stream(folder / "d", column="title"))


def test_a_folder_without_text_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.py").write_text("code")
    with pytest.raises(InputError, match=r"none holds no text: give a folder with files that end in \.txt"):
        documents(tmp_path / "none")
    with pytest.raises(InputError, match=r"unknown source 'nowhere': .*, or give a folder, or a file that ends in"):
        documents("nowhere")


def test_an_encoder_and_samples_draw_from_a_folder(llama: FrozenLM, folder: Path) -> None:
    (folder / "prose.txt").write_text(PROSE)
    ids = sample(str(folder), llama, 8, 3, seed=0, split="train")
    assert ids.shape == (3, 8)
    train, validation = training_texts(llama, TextChoice(str(folder)), 6)
    assert train.n_windows(6) > len(PROSE) / 2
    assert validation.n_windows(6) > 0


def test_every_twentieth_document_validates_and_windows_stay_inside_theirs(llama: FrozenLM, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
    path.write_text("".join(f'{{"text": "{letter * 9}"}}\n' for letter in letters))
    assert len(documents(path)) == 40
    train_pool, validation = training_texts(llama, TextChoice(str(path), own_share=0.5), 4)
    assert set(llama.decode(validation.ids.long())) == {letters[19], letters[39]}
    assert not set(llama.decode(train_pool.ids.long())) & {letters[19], letters[39]}
    for ids in train_pool.windows(torch.arange(train_pool.n_windows(4)), 4):
        assert len(set(ids.tolist())) == 1


def test_draws_come_from_the_seed_and_shorter_sentences_are_beginnings(llama: FrozenLM, source: str) -> None:
    pool, _ = training_texts(llama, TextChoice(source), 6)
    ids = pool.draw(6, 50, 0.5, seed=1)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, pool.draw(6, 50, 0.5, seed=1))
    assert torch.equal(pool.draw(6, 50, 1.0, seed=1)[:, :2], pool.draw(2, 50, 1.0, seed=1))
    assert not torch.equal(ids, pool.draw(6, 50, 0.5, seed=2))
    sentences = {tuple(row) for row in pool.sentences.tolist()}
    assert all(tuple(row) in sentences for row in pool.draw(6, 50, 1.0, seed=1).tolist())
    among = sum(tuple(row) in sentences for row in pool.draw(6, 2000, 0.25, seed=1).tolist()) / 2000
    assert among == pytest.approx(0.25, abs=0.05)


def test_cached_texts_are_the_same_texts(llama: FrozenLM, source: str, tmp_path: Path, monkeypatch) -> None:
    cache, choice = tmp_path / "texts", TextChoice(source)
    made = cached_training_texts(llama, choice, 4, cache)
    monkeypatch.setattr("prototokens.encoder.training.texts.training_texts", None)
    for pool, other in zip(cached_training_texts(llama, choice, 4, cache), made, strict=True):
        assert all(torch.equal(getattr(pool, k), getattr(other, k)) for k in ("ids", "ends", "sentences"))
        assert (pool.ids.dtype, pool.ends.dtype, pool.sentences.dtype) == (torch.int32, torch.int64, torch.int32)
    monkeypatch.undo()
    with open(source, "a") as file:
        file.write("One more sentence stands here.")
    assert len(cached_training_texts(llama, choice, 4, cache, write=False)[1].ids) > len(made[1].ids)
    assert len(cached_training_texts(llama, choice, 5, cache)[0].sentences[0]) == 5


def test_a_few_texts_train_and_validate_alike(llama: FrozenLM, source: str) -> None:
    pool, validation = training_texts(llama, TextChoice(source, texts=8), 4)
    assert pool is validation
    assert (pool.n_windows(4), len(pool.sentences)) == (6, 2)
    seen = {tuple(row) for row in pool.draw(4, 500, 0.25, seed=0).tolist()}
    spread = torch.cat(list(pool.evenly_spaced(4, 100).values())).tolist()
    assert seen == {tuple(row) for row in spread}


def test_too_little_text_is_refused(llama: FrozenLM, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("A few words.")
    with pytest.raises(InputError, match="has too few texts of 6 tokens to train on and to hold out: give it more"):
        training_texts(llama, TextChoice(str(path)), 6)
    with pytest.raises(InputError, match=r"has 4 texts of 8 tokens to train on, not 9"):
        training_texts(llama, TextChoice(str(path), texts=9), 8)
