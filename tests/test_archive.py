"""Laws of the archive's file: what is written is what is read, and any damage is refused or harmless."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from archives import BLOCKS, NOTHING, QUICK, TEXT, packed, same_archive
from families import RECIPE, family
from prototokens import InputError, fit, read_archive, save, unpack
from prototokens.archive.archive import KIND, Archive, write_archive
from prototokens.arrangements import arrangement_named
from prototokens.files.record import FORMAT_VERSION, write_record


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "text.proto", packed())


@pytest.mark.parametrize("effort", [NOTHING, QUICK, BLOCKS])
def test_what_is_written_is_what_is_read(effort: Any, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file", packed(effort))
    again = read_archive(str(path))
    assert same_archive(again, packed(effort))
    assert unpack(family("llama"), again) == TEXT
    with pytest.raises(InputError, match="exists already"):
        write_archive(path, again)
    assert write_archive(tmp_path / "twice", again).read_bytes() == path.read_bytes()
    assert write_archive(path, packed(NOTHING), overwrite=True) == path
    assert same_archive(read_archive(path), packed(NOTHING))


def test_an_archive_with_every_kind_of_chunk_comes_back(tmp_path: Path) -> None:
    archive = packed(BLOCKS)
    stores = ["int8", "float16", "float32"] * len(archive.vectors)
    every = torch.arange(len(archive.vectors))
    mixed = replace(archive, vectors=type(archive.vectors).of(archive.vectors.take(every), stores[: len(every)]))
    assert same_archive(read_archive(write_archive(tmp_path / "file", mixed)), mixed)


def refused_or_harmless(path: Path, raw: bytes) -> bool:
    """Read a file with these bytes: refused in one clear error (True), or the same archive as ever (False)."""
    path.write_bytes(raw)
    try:
        archive = read_archive(path)
    except InputError as error:
        message = str(error)
    else:
        assert same_archive(archive, packed())
        return False
    assert str(path) in message
    return True


def test_a_flipped_bit_anywhere_is_refused_or_harmless(file: Path) -> None:
    good, draw = file.read_bytes(), random.Random(0)
    places = [*range(0, len(good), 7), *range(16), len(good) - 1]
    refused = 0
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        refused += refused_or_harmless(file, bytes(bad))
    assert refused / len(places) > 0.99  # what is harmless: the order of names, white space


def test_a_file_cut_short_or_too_long_is_refused(file: Path) -> None:
    good = file.read_bytes()
    for length in [*range(0, len(good), 97), len(good) - 1]:
        assert refused_or_harmless(file, good[:length])
    assert refused_or_harmless(file, good + b"\0")
    assert refused_or_harmless(file, good[1:])


def test_parts_in_another_order_are_refused(file: Path) -> None:
    good, draw = file.read_bytes(), random.Random(1)
    for _ in range(50):
        size = draw.choice([1, 8, 64])
        a, b = sorted(draw.sample(range(0, len(good) - size, size), 2))
        bad = bytearray(good)
        bad[a : a + size], bad[b : b + size] = good[b : b + size], good[a : a + size]
        assert bytes(bad) == good or refused_or_harmless(file, bytes(bad))
    block = 512
    blocks = [good[i : i + block] for i in range(0, len(good), block)]
    draw.shuffle(blocks)
    assert refused_or_harmless(file, b"".join(blocks))


def test_foreign_and_newer_files_are_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_archive(tmp_path / "nothing")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    with pytest.raises(InputError, match="damaged, or not a safetensors file"):
        read_archive(text)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="not one that prototokens wrote"):
        read_archive(tmp_path / "other")
    lm = family("llama")
    one = fit(lm, lm.encode("a"), replace(RECIPE, stop=replace(RECIPE.stop, max_steps=0)))
    with pytest.raises(InputError, match=f"holds proto-tokens, not {KIND}"):
        read_archive(save(tmp_path / "one", one.tokens))
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["prototokens"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    header["format"] = FORMAT_VERSION + 1
    save_file(tensors, tmp_path / "newer", metadata={"prototokens": json.dumps(header)})
    with pytest.raises(InputError, match="newer than 1; update prototokens"):
        read_archive(tmp_path / "newer")


WRONG: dict[str, Any] = {
    "m": lambda t: t[:-1],
    "fixed": lambda t: torch.zeros(1, t.shape[-1]),
    "lengths": lambda t: t - 2,
    "own_m": lambda t: ~t,
    "checksums": lambda t: t[:, :4],
    "residual_positions": lambda t: t + 10_000,
    "residual_ids": lambda t: t[1:],
    "pieces": lambda t: t + 1,
    "piece_checksums": lambda t: t[1:],
}


@pytest.mark.parametrize("name", WRONG)
def test_parts_that_do_not_fit_together_are_refused(name: str) -> None:
    archive = packed(NOTHING)
    with pytest.raises(InputError):
        replace(archive, **{name: WRONG[name](getattr(archive, name))})
    backwards = torch.flip(archive.residual_positions, [0])
    with pytest.raises(InputError, match="not in order"):
        replace(archive, residual_positions=backwards)
    with pytest.raises(InputError, match="pieces that do not fit"):
        replace(archive, literals=archive.literals + b"!")


@pytest.mark.parametrize("missing", ["lengths", "m", "literals", "vectors.scale", "model", "arrangement", "text_hash"])
def test_a_record_that_lacks_a_part_is_refused(missing: str, tmp_path: Path) -> None:
    file = write_archive(tmp_path / "whole", packed(NOTHING))
    with safe_open(file, framework="pt") as opened:
        record = json.loads(opened.metadata()["prototokens"])["record"]
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors.pop(missing, None)
    record.pop(missing, None)
    path = write_record(tmp_path / "short", KIND, tensors, record, overwrite=False)
    with pytest.raises(InputError, match="short: its record cannot be read"):
        read_archive(path)


def test_an_m_that_no_chunk_uses_takes_no_bytes(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "file", packed(BLOCKS))
    assert packed(BLOCKS).own_m.all()
    with safe_open(path, framework="pt") as opened:
        assert "m" not in opened.keys()  # noqa: SIM118
    assert unpack(family("llama"), read_archive(path)) == TEXT


def test_sizes_are_counted() -> None:
    archive: Archive = packed()
    assert archive.n_characters == len(TEXT)
    assert archive.n_tokens == int(archive.token_starts[-1])
    assert archive.piece_starts[-1].tolist() == [len(archive.literals), len(archive), len(TEXT)]
    assert archive.literals == "\ufffd".encode()


LARGE = 10**9


def test_counts_that_no_file_of_this_size_can_hold_are_refused() -> None:
    archive = packed(NOTHING)
    huge = torch.iinfo(torch.int64).max
    for name, column, value in (("lengths", slice(None), huge), ("pieces", (0, 0), LARGE), ("pieces", (0, 1), huge),
                                ("pieces", (0, 2), LARGE), ("pieces", (-1, 2), huge)):  # fmt: skip
        changed = getattr(archive, name).clone()
        changed[column] = value
        with pytest.raises(InputError, match="counts that do not fit its contents"):
            replace(archive, **{name: changed})
    with pytest.raises(InputError, match="more characters than bytes"):
        replace(archive, text_bytes=archive.n_characters - 1)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_chunk_of_a_billion_tokens_takes_no_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the model's positions, and where it has no bound by the free memory."""
    archive = packed(replace(NOTHING, chunk_tokens=2), name=name)
    lengths = archive.lengths * LARGE // archive.lengths.max()
    with pytest.raises(InputError, match="another number of vectors than its chunks have"):  # one for each block
        replace(archive, lengths=lengths)
    large = replace(archive, lengths=lengths, arrangement=arrangement_named("m,e,m*(n-1)"))
    monkeypatch.setattr("prototokens.archive.unpack.chunk_logits", None)
    said = "and LlamaForCausalLM has 64" if name == "llama" else r"whose logits take 1056\.0 GB, and .* GB are free"
    with pytest.raises(InputError, match=f"a chunk of {LARGE} tokens, .*{said}"):
        unpack(family(name), large)


def test_ids_that_the_model_does_not_have_are_refused() -> None:
    lm, archive = family("llama"), packed(NOTHING)
    ids = archive.residual_ids.clone()
    ids[0] = lm.vocabulary
    with pytest.raises(InputError, match=f"token ids from {lm.vocabulary} on, and LlamaForCausalLM has none of these"):
        unpack(lm, replace(archive, residual_ids=ids))


RECORDS: dict[str, Any] = {
    "packing": ["effort"],
    "text_bytes": 1e300,
    "text_hash": 5,
    "model": {"name": "x", "revision": 1, "fingerprint": None, "tokenizer_hash": []},
    "arrangement": "e,m*n",
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_kind_is_refused_in_one_line(name: str, file: Path, tmp_path: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        record = json.loads(opened.metadata()["prototokens"])["record"]
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    path = write_record(tmp_path / "odd", KIND, tensors, record | {name: RECORDS[name]}, overwrite=False)
    with pytest.raises(InputError, match="odd: ") as error:
        read_archive(path)
    assert "\n" not in str(error.value)
    floats = tensors | {"lengths": tensors["lengths"].float()}
    with pytest.raises(InputError, match="its record cannot be read"):
        read_archive(write_record(path, KIND, floats, record, overwrite=True))


def test_archives_of_the_first_version_are_read() -> None:
    archive = read_archive(Path(__file__).parent / "first_version" / "text.proto")
    assert set(archive.packing["effort"]) == {"lengths", "attempts", "spare", "floor_tokens", "margin"}
    assert archive.packing["effort"]["attempts"] == [{"own_m": False, "steps": 0}]
    # All of its tokens are in the residual: other processors may build the tiny model with other bits.
    assert unpack(family("llama"), replace(archive, model=family("llama").identity)) == TEXT
