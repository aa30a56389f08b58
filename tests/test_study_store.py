"""The store: every row once and whole, whatever happens to the process that writes it."""

from __future__ import annotations

import csv
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from prototokens import InputError
from prototokens.study.cells import BoundCell, cell_keys, cell_settings
from prototokens.study.export import write_csv, write_parquet
from prototokens.study.store import Store

ORIGIN = {"fingerprint": "f" * 64, "dtype": "float32", "threads": 1, "versions": {"torch": "2"}}


def cells(count: int, study: str = "cost") -> list[BoundCell]:
    settings_of_cells = [cell_settings("smoke", "old", text, 4, 0, "fast", 9) for text in range(count)]
    keys = cell_keys(study, "f" * 64, "float32", settings_of_cells, ["h"] * count)
    return [
        BoundCell(key, study, f"{study} {i // 2:04d}", i % 2, {"model": "tiny", **settings})
        for i, (key, settings) in enumerate(zip(keys, settings_of_cells, strict=True))
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.sqlite"


def test_a_planned_cell_is_no_row_and_a_finished_one_is_a_row_forever(path):
    with Store.open(path, write=True) as store:
        first, second, third = cells(3)
        store.plan([first, second, third])
        assert store.rows() == []
        store.finish(first.key, {"exact": 1, "seconds": 2.0}, ORIGIN)
        store.fail(second.key, "ValueError: no", ORIGIN)
        store.plan([first, second, third])
        store.fail(first.key, "too late", ORIGIN)
        store.finish(first.key, {"exact": 0}, ORIGIN)
        assert store.counts() == [
            {"study": "cost", "model": "tiny", "scale": "smoke", "done": 1, "failed": 1, "planned": 1}
        ]
    with Store.open(path) as store:
        done, failed = store.rows()
    assert list(done)[:4] == ["key", "study", "scale", "model"]
    assert (done["key"], done["exact"], done["status"], done["error"]) == (first.key, 1, "done", None)
    assert (failed["key"], failed["status"], failed["error"]) == (second.key, "failed", "ValueError: no")
    assert (done["dtype"], done["threads"], done["torch"]) == ("float32", 1, "2")


def test_a_failed_cell_can_be_finished_later(path):
    (cell,) = cells(1)
    with Store.open(path, write=True) as store:
        store.plan([cell])
        store.fail(cell.key, "lost", ORIGIN)
        store.finish(cell.key, {"exact": 1}, ORIGIN)
        (row,) = store.rows()
    assert (row["status"], row["error"], row["exact"]) == ("done", None, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null(path, value):
    (cell,) = cells(1)
    with Store.open(path, write=True) as store:
        store.plan([cell])
        store.finish(cell.key, {"loss_nats": value, "steps": 3}, ORIGIN)
        (row,) = store.rows()
    assert (row["loss_nats"], row["steps"]) == (None, 3)


def test_keys_depend_on_content_alone():
    settings_of_cells = [cell_settings("smoke", "old", text, 4, 0, "fast", 9) for text in range(2)]
    base = ("cost", "f", "float32", settings_of_cells, ["a", "b"])
    keys = cell_keys(*base)
    assert keys == cell_keys(*base)
    assert len(set(keys)) == 2
    altered = [settings_of_cells[0], settings_of_cells[1] | {"seed": 1}]
    for place, other in enumerate(("quality", "g", "bfloat16", altered, ["a", "c"])):
        changed = list(base)
        changed[place] = other
        assert not set(keys) & set(cell_keys(*changed)), place
    shuffled = [dict(reversed(list(settings.items()))) for settings in settings_of_cells]
    assert cell_keys("cost", "f", "float32", shuffled, ["a", "b"]) == keys


def test_one_writer_at_a_time_and_readers_beside_it(path):
    with Store.open(path, write=True) as store:
        store.plan(cells(1))
        with pytest.raises(InputError, match="another process is writing"):
            Store.open(path, write=True)
        with Store.open(path) as reader:
            assert reader.counts()[0]["planned"] == 1
    with Store.open(path, write=True):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such store"),
        (lambda p: p.write_bytes(b"not a database, and long enough to be looked at" * 99), "not a store"),
        (lambda p: sqlite3.connect(p).execute("CREATE TABLE a (b)").connection.close(), "not a store"),
    ],
)
def test_what_is_no_store_is_refused(path, make, message):
    make(path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(InputError, match=message):
        Store.open(path)
    if before is not None:
        with pytest.raises(InputError, match="not a store"):
            Store.open(path, write=True)
        assert path.read_bytes() == before


def test_a_newer_store_and_a_missing_folder_are_refused(path):
    Store.open(path, write=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
    connection.close()
    with pytest.raises(InputError, match="format 2 is newer than 1"):
        Store.open(path)
    with pytest.raises(InputError, match="there is no folder"):
        Store.open(path.parent / "none" / "x", write=True)


def test_merged_stores_hold_each_cell_once_with_its_best_state(tmp_path):
    a, b, c, d = cells(4)
    with Store.open(tmp_path / "one", write=True) as one, Store.open(tmp_path / "two", write=True) as two:
        for store in (one, two):
            store.plan([a, b, c])
        two.plan([d])
        one.finish(a.key, {"exact": 1}, ORIGIN)
        two.finish(a.key, {"exact": 0}, ORIGIN)
        one.fail(b.key, "lost", ORIGIN)
        two.finish(b.key, {"exact": 1}, ORIGIN)
        two.fail(c.key, "lost", ORIGIN)
        two.vectors.mkdir()
        two.vectors_path(b.key).write_bytes(b"vectors")
        two.keep_texts("k", [[1, 2]])
        assert one.merge(two) == 2
        assert one.merge(two) == 0
        assert [(r["key"], r["status"], r.get("exact")) for r in one.rows()] == [
            (a.key, "done", 1),
            (b.key, "done", 1),
            (c.key, "failed", None),
        ]
        assert one.counts()[0]["planned"] == 1
        assert one.vectors_path(b.key).read_bytes() == b"vectors"
        assert one.texts("k") == [[1, 2]]
        assert one.texts("other") is None


def test_a_merged_row_keeps_its_own_vectors(tmp_path):
    killed, failed, done_twice, without_vectors = planned = cells(4)
    with Store.open(tmp_path / "one", write=True) as one, Store.open(tmp_path / "two", write=True) as two:
        for store in (one, two):
            store.plan(planned)
            store.vectors.mkdir()
            for cell in planned:
                store.vectors_path(cell.key).write_text(f"of {store.path.name}")
        two.vectors_path(without_vectors.key).unlink()
        one.fail(failed.key, "lost", ORIGIN)
        one.finish(done_twice.key, {"exact": 1}, ORIGIN)  # the first was killed between its vectors and its row
        for cell in planned:
            two.finish(cell.key, {"exact": 0}, ORIGIN)
        assert one.merge(two) == 3
        kept = [one.vectors_path(cell.key).read_text() for cell in (killed, failed, done_twice)]
        assert kept == ["of two", "of two", "of one"]
        assert [row["exact"] for row in one.rows()] == [0, 0, 1, 0]
        assert not one.vectors_path(without_vectors.key).exists()


def test_exports_are_stable_and_hold_every_column(path, tmp_path):
    first, second = cells(2)
    with Store.open(path, write=True) as store:
        store.plan([first, second])
        store.finish(second.key, {"exact": 1, "loss_nats": 0.1}, ORIGIN)
        store.finish(first.key, {"exact": 0, "passes": 3}, ORIGIN)
        rows = store.rows()
        again = store.rows("cost")
        assert store.rows("quality") == []
    assert rows == again
    one = write_csv(tmp_path / "a.csv", rows).read_bytes()
    assert one == write_csv(tmp_path / "b.csv", again).read_bytes()
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert next(iter(read[0])) == "key"
    assert [row["key"] for row in read] == [first.key, second.key]
    assert (read[0]["loss_nats"], read[1]["loss_nats"]) == ("", "0.1")
    with pytest.raises(InputError, match="exists already"):
        write_csv(tmp_path / "a.csv", rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(write_parquet(tmp_path / "a.parquet", rows)).to_pylist()
    assert [row["key"] for row in table] == [first.key, second.key]
    assert [row["loss_nats"] for row in table] == [None, 0.1]
    assert set(table[0]) == set(rows[0]) | set(rows[1])


def test_the_store_needs_no_torch():
    script = (
        "import sys, prototokens.study.store, prototokens.study.export, prototokens.study.scales\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def filled(path: Path) -> str:
    """A store with one finished cell that has vectors; its key."""
    (cell,) = cells(1)
    with Store.open(path, write=True) as store:
        store.plan([cell])
        store.vectors.mkdir()
        store.vectors_path(cell.key).write_bytes(b"vectors")
        store.finish(cell.key, {"exact": 1}, ORIGIN)
        store.keep_texts("k", [[1, 2]])
    return cell.key


def tampered(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize("key", ["../../planted", "/planted", "a" * 31, "A" * 32, "a" * 32 + "\n", "", 7])
def test_a_key_that_could_lead_out_of_the_folder_is_refused_before_anything_is_taken(tmp_path, key):
    if key == "/planted":  # a path of its own
        key = str(tmp_path / "planted")
    (tmp_path / "sent" / "deeper").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    store, taken_into = tmp_path / "sent" / "deeper" / "theirs", tmp_path / "here" / "ours"
    filled(store)
    tampered(store, "INSERT INTO cells SELECT ?, study, batch, 1, status, settings, result, error, "
             "provenance, finished, seconds FROM cells", key)  # fmt: skip
    Path(f"{store}.vectors", f"{key}.safetensors").write_bytes(b"planted")
    before = sorted(tmp_path.rglob("*.safetensors"))
    assert len(before) == 2
    with Store.open(taken_into, write=True) as target, Store.open(store) as source:
        with pytest.raises(InputError, match="is no key of a cell; the file was not made by a study"):
            target.merge(source)
        assert target.rows() == []
        assert target.texts("k") is None
        assert not target.vectors.exists()
    assert sorted(tmp_path.rglob("*.safetensors")) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE cells SET settings = '[]'",
        "UPDATE cells SET settings = 'no json'",
        'UPDATE cells SET settings = \'{"model": "tiny"}\'',
        "UPDATE cells SET result = '7'",
        "UPDATE cells SET provenance = '[1]'",
        "UPDATE cells SET status = 'stolen'",
        "UPDATE texts SET ids = '[[-1]]'",
        "UPDATE texts SET ids = '{\"a\": 1}'",
    ],
)
def test_a_store_of_another_maker_is_refused_in_one_line(tmp_path, statement):
    filled(tmp_path / "theirs")
    tampered(tmp_path / "theirs", statement)
    with Store.open(tmp_path / "ours", write=True) as target, Store.open(tmp_path / "theirs") as source:
        with pytest.raises(InputError, match=r"theirs: the entry '.*' cannot be read; it was not made by a study$"):
            target.merge(source)
        assert target.rows() == []


def test_a_link_among_the_vectors_is_not_followed(tmp_path):
    key = filled(tmp_path / "theirs")
    (tmp_path / "secret").write_text("secret")
    link = tmp_path / "theirs.vectors" / f"{key}.safetensors"
    link.unlink()
    link.symlink_to(tmp_path / "secret")
    with Store.open(tmp_path / "ours", write=True) as target, Store.open(tmp_path / "theirs") as source:
        target.merge(source)
        assert not target.vectors_path(key).exists()


@pytest.mark.parametrize("version", ["one", "", "-1", "1" * 5000, "²"])
def test_a_format_that_is_no_number_is_refused(path, version):
    Store.open(path, write=True).close()
    tampered(path, "UPDATE meta SET value = ?", version)
    for write in (False, True):
        with pytest.raises(InputError, match=r"not a store of studies \(its format is '.*', not a number\)"):
            Store.open(path, write=write)
