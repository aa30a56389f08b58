"""Laws of files: what is loaded is what was saved, to the bit, and what is damaged is refused."""

import json
import math
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prototokens import Arrangement, InputError, ProtoTokens, load, save
from prototokens.arrangements import ARRANGEMENTS
from prototokens.files import atomic as files
from prototokens.files import record as records
from prototokens.files.record import read_record, write_record
from prototokens.lm.identity import Identity, hash_ids
from prototokens.proto_tokens import Provenance

MODEL = Identity(name="a/b", revision="v1", fingerprint="f" * 8, tokenizer_hash="t" * 8)
PROVENANCE = Provenance(
    model=MODEL, target_hash="h" * 8, token_accuracy=1 / 3, min_margin=-0.1, loss=1e-7, dtype="bfloat16",
    preset=None, seed=-3, versions={"torch": "2"},
    start="text-e",
)  # fmt: skip


def some(e_tokens: int = 1, width: int = 4, name: str | Arrangement = "m,e,m*(n-1)") -> ProtoTokens:
    arrangement = ARRANGEMENTS[name] if isinstance(name, str) else name
    generator = torch.Generator().manual_seed(e_tokens + width)
    return ProtoTokens(
        e=torch.randn(e_tokens, width, generator=generator),
        m=torch.randn(width, generator=generator),
        fixed=torch.randn(len(arrangement.fixed), width, generator=generator),
        length=7,
        arrangement=arrangement,
        provenance=PROVENANCE,
    )


def same(a: ProtoTokens, b: ProtoTokens) -> bool:
    vectors = all(
        torch.equal(x, y) and x.dtype == y.dtype and x.shape == y.shape
        for x, y in ((a.e, b.e), (a.m, b.m), (a.fixed, b.fixed))
    )
    return vectors and (a.length, a.arrangement, a.provenance) == (b.length, b.arrangement, b.provenance)


OWN = Arrangement("ünï,e", ("x", "e", "bos"), ("m", "e"), "blocks", "body")


@pytest.mark.parametrize("name", [*ARRANGEMENTS, OWN])
@pytest.mark.parametrize(("e_tokens", "width"), [(1, 4), (3, 1), (2, 64)])
def test_loading_gives_what_was_saved(tmp_path: Path, name: Any, e_tokens: int, width: int) -> None:
    tokens = some(e_tokens, width, name)
    assert same(load(save(tmp_path / "a.safetensors", tokens)), tokens)


def test_odd_values_survive(tmp_path: Path) -> None:
    tiny = torch.tensor([-0.0, 1e-45, 3.4e38, -1.5])
    odd = replace(PROVENANCE, loss=math.inf, min_margin=-math.inf, preset="p\n\"é\u2028", seed=2**70,
                  model=replace(MODEL, revision=None, name="C:\\a b"))  # fmt: skip
    tokens = replace(some(), m=tiny, provenance=odd)
    back = load(save(tmp_path / "a", tokens))
    assert same(back, tokens)
    assert torch.equal(back.m.view(torch.int32), tiny.view(torch.int32))
    nan = load(save(tmp_path / "b", replace(tokens, provenance=replace(odd, loss=math.nan))))
    assert math.isnan(nan.provenance.loss)


def test_vectors_that_are_views_are_saved_as_they_look(tmp_path: Path) -> None:
    whole = torch.randn(4, 6).T  # not contiguous
    tokens = replace(some(width=4), e=whole[:2], m=whole[2])
    assert same(load(save(tmp_path / "a", tokens)), tokens)


@pytest.mark.parametrize("name", ["a.safetensors", "a", "a.txt", ".hidden", "ü b;c", "-o"])
def test_the_name_is_taken_as_given(tmp_path: Path, name: str) -> None:
    path = save(str(tmp_path / name), some())
    assert path == tmp_path / name
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert same(load(str(path)), some())
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~files._umask()


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"a.safetensors: exists already; choose another name, or overwrite it"):
        save(path, some())
    assert path.read_text() == "precious"
    save(path, some(), overwrite=True)
    assert same(load(path), some())
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        save(tmp_path, some())
    with pytest.raises(InputError, match="there is no folder"):
        save(tmp_path / "none" / "a", some())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="there is no folder"):
        save(tmp_path / "file" / "a", some())
    with pytest.raises(InputError, match="cannot be written"):
        save(tmp_path / ("n" * 300), some())
    with pytest.raises(InputError, match="is no ordinary file"):
        save("/dev/null", some(), overwrite=True)
    with pytest.raises(InputError, match="cannot be written"):
        save("/proc/a", some())


def test_a_link_is_followed_and_a_long_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    save(tmp_path / "link", some(), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert same(load(tmp_path / "target"), some())
    assert same(load(save(tmp_path / ("n" * 250), some())), some())


@pytest.mark.parametrize("before", [b"precious", None])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None, error: BaseException
) -> None:
    path = tmp_path / "a.safetensors"
    if before is not None:
        path.write_bytes(before)

    def fail(tensors: Any, name: str, metadata: Any) -> None:
        Path(name).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(records, "save_file", fail)
    with pytest.raises((InputError, OSError, KeyboardInterrupt)):
        save(path, some(), overwrite=True)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any, name: str, metadata: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "save_file", fail)
    with pytest.raises(InputError, match=r"cannot be written .*No space left on device"):
        save(tmp_path / "a", some())


def test_while_it_is_written_the_file_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "a.safetensors", []

    def watch(tensors: Any, name: str, metadata: Any) -> None:
        save_file(tensors, name, metadata=metadata)
        seen.append((path.exists(), Path(name).parent == tmp_path))

    monkeypatch.setattr(records, "save_file", watch)
    save(path, some())
    assert seen == [(False, True)]  # in the same folder, so that renaming is one act


# Damage.


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    return save(tmp_path / "good", some()).read_bytes()


def refusal(path: Path, data: bytes) -> str:
    """Why a file with these bytes is refused, or nothing if it loads as what was saved."""
    path.write_bytes(data)
    try:
        loaded = load(path)
    except InputError as error:
        return str(error)
    assert same(loaded, some()), "damage went through"
    return ""


@pytest.mark.parametrize("flip", [0x01, 0xA0])
def test_a_byte_that_flipped_is_refused_or_harmless(tmp_path: Path, good: bytes, flip: int) -> None:
    header = struct.unpack("<Q", good[:8])[0]
    assert len(good) < 3000
    refusals = []
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= flip
        refusals.append(refusal(tmp_path / "bad", bytes(data)))
    assert all(refusals[8 + header :])  # the vectors
    assert sum(map(bool, refusals)) > 0.9 * len(good)  # padding and white space are harmless


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1, -4, -100])
def test_a_truncated_file_is_refused(tmp_path: Path, good: bytes, length: int) -> None:
    path = tmp_path / "bad"
    assert refusal(path, good[:length]).startswith(f"{path}: damaged, or not a safetensors file")
    assert refusal(path, good + bytes(abs(length) + 1)).startswith(f"{path}: damaged, or not a safetensors file")


def rewrite(path: Path, change: Any) -> Path:
    """Write a file whose header was changed, with a checksum that fits: what a newer version or a forger might do."""
    tensors = {"e": torch.ones(1, 4), "m": torch.ones(4), "fixed": torch.empty(0, 4)}
    tokens = some()
    record: dict[str, Any] = {
        "length": 7,
        "arrangement": tokens.arrangement.to_json(),
        "provenance": json.loads(json.dumps(PROVENANCE, default=vars)),
    }
    header = {"format": 1, "kind": "proto-tokens", "record": record}
    change(header, tensors)
    if isinstance(header["record"], dict):
        header["checksum"] = records._checksum(tensors, header["record"])
    save_file(tensors, path, metadata={"prototokens": json.dumps(header)})
    return path


def test_a_file_may_be_made_by_hand(tmp_path: Path) -> None:
    assert load(rewrite(tmp_path / "a", lambda header, tensors: None)).provenance == PROVENANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(format=2), "format 2 is newer than 1; update prototokens"),
        (lambda h, t: h.update(format="1"), "damaged: its metadata cannot be read"),
        (lambda h, t: h.pop("format"), "damaged: its metadata cannot be read"),
        (lambda h, t: h.update(record=[]), "damaged: its metadata cannot be read"),
        (lambda h, t: h.update(kind="a learned start"), "holds a learned start, not proto-tokens"),
        (lambda h, t: h["record"].pop("length"), r"its record cannot be read \(KeyError\('length'\)\)"),
        (lambda h, t: h["record"].update(length=0), "length 0 with 1 e-tokens: both must be numbers from 1"),
        (lambda h, t: h["record"].update(length=10**9), "length 1000000000 is above 1048576"),
        (lambda h, t: h["record"].update(length="7"), "length '7' with 1 e-tokens"),
        (lambda h, t: h["record"].update(arrangement={}), "its record cannot be read"),
        (lambda h, t: h["record"]["arrangement"].update(body=[]), "the body needs at least one symbol"),
        (lambda h, t: h["record"]["provenance"].update(extra=1), "its record cannot be read"),
        (lambda h, t: h["record"]["provenance"].update(model=None), "its record cannot be read"),
        (
            lambda h, t: h["record"]["provenance"]["model"].update(fingerprint=5),
            "the model's fingerprint is 5; it must be",
        ),
        (
            lambda h, t: h["record"]["provenance"]["model"].update(name=None),
            "the model's name is None; it must",
        ),
        (lambda h, t: h["record"]["provenance"].update(target_hash=5), "the provenance's target_hash is 5; that is of"),
        (
            lambda h, t: h["record"]["provenance"].update(loss="1"),
            "the provenance's loss is '1'; that is of another type",
        ),
        (lambda h, t: h["record"]["provenance"].update(seed=True), "the provenance's seed is True; that is of another"),
        (lambda h, t: h["record"]["provenance"].update(versions=[]), r"the provenance's versions is \[\]; that is of"),
        (lambda h, t: t.pop("e"), "its record cannot be read"),
        (lambda h, t: t.update(e=torch.full((1, 4), math.nan)), "e holds values that are not finite"),
        (lambda h, t: t.update(m=torch.full((4,), math.inf)), "m holds values that are not finite"),
        (lambda h, t: t.update(e=torch.ones(1, 5)), r"e is \(1, 5\) torch.float32; it must be \(1, 4\)"),
        (lambda h, t: t.update(e=torch.ones(4)), r"e is \(4,\)"),
        (lambda h, t: t.update(e=torch.ones(1, 4).half()), r"e is \(1, 4\) torch.float16; it must be"),
        (lambda h, t: t.update(fixed=torch.ones(2, 4)), r"fixed is \(2, 4\) torch.float32; it must be \(0, 4\)"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = rewrite(tmp_path / "bad", change)
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_vectors_without_a_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load(rewrite(tmp_path / "bad", lambda header, tensors: tensors.update(m=torch.tensor(1.0))))


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load(path)
    with pytest.raises(InputError, match="is a folder, not a file"):
        load(tmp_path)
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(2)}, path, metadata=metadata)
        with pytest.raises(InputError, match="a safetensors file, but not one that prototokens wrote"):
            load(path)
    for text in ("not json", "[]", "7", '{"format": ', "\ud800".encode("utf-8", "surrogatepass").hex()):
        save_file({"weight": torch.ones(2)}, path, metadata={"prototokens": text})
        with pytest.raises(InputError, match="damaged"):
            load(path)
    path.write_text("a text")
    with pytest.raises(InputError, match="damaged, or not a safetensors file"):
        load(path)


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    path = write_record(tmp_path / "a", "a map", {"x": torch.ones(2)}, {"n": [1, None, "é"]}, overwrite=False)
    tensors, record = read_record(path, "a map")
    assert torch.equal(tensors["x"], torch.ones(2))
    assert record == {"n": [1, None, "é"]}
    with pytest.raises(InputError, match="holds a map, not proto-tokens"):
        load(path)


# The value itself.


def test_values_that_decode_to_nothing_are_refused() -> None:
    for change, message in (
        ({"e": torch.full((1, 4), math.nan)}, "e holds values that are not finite"),
        ({"length": 0}, "length 0 with 1 e-tokens: both must be numbers from 1"),
        ({"e": torch.empty(0, 4)}, "length 7 with 0 e-tokens: both must be numbers from 1"),
        ({"e": torch.ones(1, 4).double()}, "e is (1, 4) torch.float64; it must be (1, 4) torch.float32"),
        ({"arrangement": ARRANGEMENTS["bos,e,m*n"]}, "fixed is (0, 4) torch.float32; it must be (1, 4) torch.float32"),
    ):
        with pytest.raises(InputError) as error:
            replace(some(), **change)
        assert str(error.value).startswith(message)


def test_a_hash_is_of_the_ids_and_their_order() -> None:
    ids = torch.tensor([1, 2, 300])
    assert hash_ids(ids) == hash_ids(ids.int()) == hash_ids(torch.tensor([[1, 2, 300]])[0])
    assert len({hash_ids(x) for x in (ids, ids.flip(0), ids[:2], ids + 1)}) == 4
