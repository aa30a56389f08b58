"""Store: one SQLite file that holds every cell of a study, and a folder of vectors beside it. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError
from ..files.atomic import new_file
from .cells import BoundCell, finite

FORMAT_VERSION = 1
PLANNED, DONE, FAILED = "planned", "done", "failed"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, ids TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY,
    study TEXT NOT NULL,
    batch TEXT NOT NULL,
    position INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('planned', 'done', 'failed')),
    settings TEXT NOT NULL,
    result TEXT,
    error TEXT,
    provenance TEXT,
    finished TEXT,
    seconds REAL
);
"""
_KEY = re.compile(r"[0-9a-f]{32}")
_COLUMNS = "key, study, batch, position, status, settings, result, error, provenance, finished, seconds"
_ORDER = "ORDER BY study, batch, position, key"


class Store:
    """Cells of studies, each written in one transaction. Open with `Store.open`; a context manager.

    Killed at any moment, a store holds every cell that was finished, whole, and no other.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, lock: FileLock | None, *, is_new: bool = False
    ) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._is_new = is_new

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, write: bool = False) -> Store:
        """Open a store: to read, or to write, which makes it if it is not there and locks out other writers.

        Raises:
            InputError: there is no such store, it is none, it is of a newer format, it cannot be written, or
                another process is writing to it.
        """
        path = Path(path)
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a store")
        if not write and not path.is_file():
            raise InputError(f"{path}: no such store; a study makes it: prototokens study NAME --store {path}")
        if write and not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        is_new = not path.exists()
        lock = _lock(path) if write else None
        try:
            mode = "rwc" if write else "rw"
            connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None)
            try:
                _check_format(connection, path, write)
            except BaseException:
                connection.close()
                raise
        except BaseException as error:
            if lock:
                _lock_file(path).unlink(missing_ok=True)  # no store was opened: leave nothing behind
                lock.release()
            if isinstance(error, sqlite3.Error):
                raise InputError(f"{path}: not a store of studies, or it cannot be opened ({error})") from None
            raise
        return cls(path, connection, lock, is_new=is_new)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._is_new and isinstance(error, InputError) and not self._holds_anything():
            self._connection.close()
            self.path.unlink(missing_ok=True)  # what made it was refused: leave nothing behind
            _lock_file(self.path).unlink(missing_ok=True)
        self.close()

    def _holds_anything(self) -> bool:
        return any(self._read(f"SELECT 1 FROM {table} LIMIT 1") for table in ("cells", "texts"))

    def close(self) -> None:
        """Close the file and let others write."""
        self._connection.close()
        if self._lock:
            self._lock.release()

    @property
    def vectors(self) -> Path:
        """The folder of vectors, one file per cell that has some."""
        return self.path.with_name(self.path.name + ".vectors")

    def vectors_path(self, key: str) -> Path:
        """Where the vectors of a cell lie.

        Raises:
            InputError: the key is none that a study makes; as a file name it could lead anywhere.
        """
        if not _KEY.fullmatch(str(key)):
            raise InputError(f"{self.path}: {str(key)[:80]!r} is no key of a cell; the file was not made by a study")
        return self.vectors / f"{key}.safetensors"

    def plan(self, cells: Iterable[BoundCell]) -> None:
        """Enter cells that are to be measured; those that are there already stay as they are."""
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO cells (key, study, batch, position, status, settings) VALUES (?, ?, ?, ?, ?, ?)",
                [(c.key, c.study, c.batch, c.position, PLANNED, _dump(c.settings)) for c in cells],
            )

    def status_of(self, keys: Iterable[str]) -> dict[str, str]:
        """Status by key of those cells that are known."""
        known = dict(self._connection.execute("SELECT key, status FROM cells"))
        return {key: known[key] for key in keys if key in known}

    def finish(self, key: str, result: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Write a cell's result; vectors must be on disk by now. A cell that is done stays as it is."""
        self._write(key, DONE, result, None, provenance)

    def fail(self, key: str, error: str, provenance: Mapping[str, Any]) -> None:
        """Record that a cell could not be measured, and why. A cell that is done stays as it is."""
        self._write(key, FAILED, None, error, provenance)

    def rows(self, study: str | None = None) -> list[dict[str, Any]]:
        """One flat dict per finished or failed cell, in the order of the grids.

        The key comes first, then study, scale and model, the other settings, the results, status and error, and
        what made the row: the weights, dtype, device, threads and versions of libraries.
        """
        cells = self._read(
            f"SELECT {_COLUMNS} FROM cells WHERE status != ? AND (? IS NULL OR study = ?) {_ORDER}",
            (PLANNED, study, study),
        )
        return [self._parsed(row[0], lambda row=row: _flat(*row)) for row in cells]  # type: ignore[misc]

    def counts(self) -> list[dict[str, Any]]:
        """How many cells of each study, model and scale are done, failed and still planned."""
        tallies: dict[tuple[str, str, str], dict[str, int]] = {}
        for key, study, status, settings in self._read(f"SELECT key, study, status, settings FROM cells {_ORDER}"):
            model, scale = self._parsed(key, lambda settings=settings: _model_and_scale(settings))  # type: ignore[misc]
            tally = tallies.setdefault((study, model, scale), {DONE: 0, FAILED: 0, PLANNED: 0})
            tally[status] += 1
        return [{"study": s, "model": m, "scale": c, **tally} for (s, m, c), tally in sorted(tallies.items())]

    def texts(self, key: str) -> list[list[int]] | None:
        """Ids of texts that were kept under a key, or None."""
        rows = self._read("SELECT ids FROM texts WHERE key = ?", (key,))
        return self._parsed(key, lambda: _text_ids(rows[0][0])) if rows else None

    def keep_texts(self, key: str, ids: list[list[int]]) -> None:
        """Keep the ids of drawn texts, so that a study that resumes elsewhere has the same texts."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (key, json.dumps(ids)))

    def merge(self, other: Store) -> int:
        """Take over what another store has finished and this one has not; returns how many cells that were.

        A result beats a failure, a failure beats a plan, and of two results this store's own stays. A result is taken
        with its vectors. The other store is read as a whole and checked before anything is taken.

        Raises:
            InputError: the other store holds what no study writes, or this one cannot be written.
        """
        known = dict(self._read("SELECT key, status FROM cells"))
        rank = {None: 0, PLANNED: 1, FAILED: 2, DONE: 3}
        cells = other._read(f"SELECT {_COLUMNS} FROM cells {_ORDER}")
        for row in cells:
            other.vectors_path(row[0])
            other._parsed(row[0], lambda row=row: _flat(*row))  # type: ignore[misc]
        texts = {
            key: other._parsed(key, lambda ids=ids: _text_ids(ids))  # type: ignore[misc]
            for key, ids in other._read("SELECT key, ids FROM texts")
        }
        better = [row for row in cells if rank[row[4]] > rank[known.get(row[0])]]
        for row in better:
            key, status = row[0], row[4]
            if status == DONE:
                _copy(other.vectors_path(key), self.vectors_path(key))
            with self._transaction() as connection:
                connection.execute(f"INSERT OR REPLACE INTO cells ({_COLUMNS}) VALUES ({', '.join('?' * 11)})", row)
        for key, ids in texts.items():
            self.keep_texts(key, ids)
        return sum(row[4] != PLANNED for row in better)

    def fingerprints(self) -> list[str]:
        """Fingerprints of the models whose cells have ended, each once."""
        origins = self._read("SELECT key, provenance FROM cells WHERE provenance IS NOT NULL GROUP BY provenance")
        named = {self._parsed(key, lambda origin=origin: _fingerprint(origin)) for key, origin in origins}  # type: ignore[misc]
        return sorted(named - {None})

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query at once: a reader that lingers keeps the writer waiting."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: cannot be read ({error})") from None

    def _parsed(self, key: str, parse: Callable[[], Any]) -> Any:
        """What `parse` makes of an entry.

        Raises:
            InputError: the entry is not as a study writes it.
        """
        try:
            return parse()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(
                f"{self.path}: the entry {str(key)[:80]!r} cannot be read; it was not made by a study"
            ) from None

    def _write(
        self,
        key: str,
        status: str,
        result: Mapping[str, Any] | None,
        error: str | None,
        provenance: Mapping[str, Any],
    ) -> None:
        columns = None if result is None else finite(result)
        seconds = None if columns is None else columns.get("seconds")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._transaction() as connection:
            connection.execute(
                "UPDATE cells SET status = ?, result = ?, error = ?, provenance = ?, finished = ?, seconds = ? "
                "WHERE key = ? AND status != ?",
                (
                    status,
                    None if columns is None else _dump(columns),
                    error,
                    _dump(provenance),
                    now,
                    seconds,
                    key,
                    DONE,
                ),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):  # a full disk, a file system that went away
                raise InputError(f"{self.path}: cannot be written ({error})") from None
            raise


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _lock(path: Path) -> FileLock:
    lock = FileLock(_lock_file(path))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{path}: another process is writing to it; wait, or choose another store") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return lock


def _check_format(connection: sqlite3.Connection, path: Path, write: bool) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if write and not tables:
        connection.executescript(
            f"BEGIN; {_SCHEMA} INSERT OR IGNORE INTO meta VALUES ('format', '{FORMAT_VERSION}'); COMMIT;"
        )
        tables = {"meta", "cells", "texts"}
    if not {"meta", "cells", "texts"} <= tables:
        raise InputError(f"{path}: not a store of studies")
    (version,) = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone() or ("",)
    if not re.fullmatch(r"[0-9]{1,9}", str(version)):
        raise InputError(f"{path}: not a store of studies (its format is {str(version)[:40]!r}, not a number)")
    if int(version) > FORMAT_VERSION:
        raise InputError(f"{path}: format {version} is newer than {FORMAT_VERSION}; update prototokens")


def _flat(
    key: str,
    study: str,
    batch: str,
    position: int,
    status: str,
    settings: str,
    result: str | None,
    error: str | None,
    provenance: str | None,
    finished: str,
    _: float | None,
) -> dict[str, Any]:
    if status not in (PLANNED, DONE, FAILED):
        raise ValueError(f"no status: {status}")
    columns, origin = json.loads(settings), json.loads(provenance or "{}")
    versions = origin.pop("versions", {})
    return {
        "key": key,
        "study": study,
        "scale": columns.pop("scale"),
        "model": columns.pop("model"),
        "batch_name": batch,
        **columns,
        **json.loads(result or "{}"),
        "status": status,
        "error": error,
        **origin,
        **versions,
        "finished": finished,
    }


def _fingerprint(provenance: str) -> str | None:
    fingerprint = json.loads(provenance).get("fingerprint")
    return None if fingerprint is None else str(fingerprint)


def _model_and_scale(settings: str) -> tuple[str, str]:
    columns = json.loads(settings)
    return str(columns["model"]), str(columns["scale"])


def _text_ids(dumped: str) -> list[list[int]]:
    texts: list[list[int]] = json.loads(dumped)
    if not all(isinstance(i, int) and 0 <= i < 2**31 for ids in texts for i in ids):
        raise ValueError("not ids of tokens")
    return texts


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), allow_nan=False)


def _copy(source: Path, target: Path) -> None:
    """Copy a file if there is one. What the target held before, vectors of a row that was never written, is lost."""
    target.unlink(missing_ok=True)
    if source.is_file() and not source.is_symlink():
        target.parent.mkdir(exist_ok=True)
        with new_file(target, overwrite=False) as temporary:
            shutil.copyfile(source, temporary)
