"""A corpus to a table of vectors: every text in one pass of an encoder, on any runner, resumable."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files.atomic import check_new_file
from ..files.resume import Journal, unfinished_work
from ..lm.identity import library_versions
from ..texts.corpora import SOURCES, check_file, stream
from ..texts.tables import FORMATS, Row, package, row_of, table_rows, text_lines
from .corpus_work import describe, encode_group
from .vectors_table import passed_over_in, write_table
from .work import Done, Runner, one

ROWS_PER_GROUP, CHARACTERS_PER_GROUP = 1024, 500_000
"""Of a row group, at most; a group has one row at least. It is what is in memory, and what an interruption loses."""
_GROUPS_AT_ONCE = 32  # that a runner is given together


@dataclass(frozen=True)
class CorpusConfig:
    """How a corpus is encoded.

    Attributes:
        encoder: folder or Hub id of the encoder; None: the one that the package holds for the model.
        n_tokens: keep only the first so many tokens of each text.
        piece_tokens: cut every text into pieces of so many tokens, each a row of its own; the last may be shorter.
        batch_tokens: tokens that share a pass; None: 256, and 2,048 on a GPU.
        column: the column that holds the texts.
        split: the split of a Hub data set.
    """

    encoder: str | None = None
    n_tokens: int | None = None
    piece_tokens: int | None = None
    batch_tokens: int | None = None
    column: str = "text"
    split: str = "train"

    def __post_init__(self) -> None:
        for name in ("n_tokens", "piece_tokens", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.n_tokens is not None and self.piece_tokens is not None:
            raise InputError("n_tokens keeps the first tokens, and piece_tokens all of them in pieces: give one")


@dataclass(frozen=True)
class CorpusProgress:
    """The state of an encoding.

    Attributes:
        groups_done: number of finished row groups.
        rows_read: number of the source's rows in them, passed over or not.
        rows: number of the table's rows so far.
        n_tokens: their tokens.
        n_right: how many of these the vectors give.
        n_exact: rows that are exact.
        n_vectors: their vectors.
        passed_over: number and reason of each row of the source that has no vectors, blank ones among them.
    """

    groups_done: int = 0
    rows_read: int = 0
    rows: int = 0
    n_tokens: int = 0
    n_right: int = 0
    n_exact: int = 0
    n_vectors: int = 0
    passed_over: tuple[tuple[int, str], ...] = ()


def encode_corpus(
    runner: Runner,
    source: str,
    output: Path,
    config: CorpusConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[CorpusProgress], None] | None = None,
) -> CorpusProgress:
    """Encode every text of a corpus into a Parquet file; see `vectors_table` for its columns.

    Texts of one length share a pass. Which texts share one follows from the source alone, and so does the file: a call
    that was stopped, in whatever way, resumes to the same file as a call that was not. Finished row groups are kept in
    `OUTPUT.partial`. A row that cannot be encoded is passed over, and the numbers of the others stay.

    Args:
        runner: has the model.
        source: a .txt file with one text a line, a .jsonl, .csv or .parquet file, a folder of such files (where a .txt
            file is one text), a named source, or the id of a Hub data set.
        output: the file to write.
        config: how to encode.
        overwrite: replace an existing file, and unfinished work of another call.
        progress: called after every row group.

    Returns:
        What was encoded.

    Raises:
        InputError: the source cannot be read, or has changed since the call that is resumed; there is no such encoder;
            the output cannot be written; a package is missing; or a unit of work failed.
    """
    config = config or CorpusConfig()
    package("pyarrow.parquet")
    if not unfinished_work(output).exists():
        check_new_file(output, overwrite=overwrite)
    rows = corpus_rows(source, config.column, config.split)
    first = next(rows, None)  # a source that cannot be read is refused before a model is loaded
    if first is None:
        raise InputError(f"{source} is empty: give a corpus with some text in it")
    described = one(runner, describe, {"encoder": config.encoder, "batch_tokens": config.batch_tokens})
    asked = ("n_tokens", "piece_tokens", "column", "split")
    settings = described | {"source": source, **{name: getattr(config, name) for name in asked}}
    metadata = settings | {"versions": library_versions()}
    with Journal(output, settings, overwrite=overwrite) as journal:
        job = {"encoder": config.encoder, **{name: settings[name] for name in ("n_tokens", "piece_tokens")}}
        job["batch_tokens"] = settings["batch_tokens"]
        groups = enumerate(grouped(itertools.chain([first], rows)))
        state = _encode_groups(runner, groups, job, journal, progress)
        if not state.rows:
            number, reason = state.passed_over[0]
            raise InputError(f"{source} has no text that can be encoded: row {number} {reason}")
        journal.finish(lambda path: write_table(path, _in_order(journal, state.groups_done), metadata))
    return state


def corpus_rows(source: str, column: str, split: str) -> Iterator[Row]:
    """The rows of a corpus, one by one, the blank ones and those that cannot be read among them.

    Raises:
        InputError: there is no such source, or it cannot be read.
    """
    path = Path(source)
    if source in SOURCES or path.is_dir():
        documents = stream(source, "all", column)
        return (Row(number, document.text) for number, document in enumerate(documents, 1))
    if source.count("/") == 1 and not path.exists() and path.suffix.lower() not in FORMATS:
        return _hub_rows(source, column, split)
    path = check_file(path)
    return text_lines(path) if path.suffix.lower() == ".txt" else table_rows(path, column)


def _hub_rows(name: str, column: str, split: str) -> Iterator[Row]:
    """The rows of a data set on the Hub, streamed."""
    datasets = package("datasets")
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the Hub's clients share no base class for what the network does to them
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"unknown corpus {name!r}: no such file or folder, and the Hub does not give it ({said})"
        ) from None
    return _numbered(rows, name, column)


def _numbered(rows: Iterable[dict[str, Any]], name: str, column: str) -> Iterator[Row]:
    number = 0
    try:
        for number, cells in enumerate(rows, 1):
            yield row_of(number, cells, name, column)
    except Exception as error:  # as in `_hub_rows`
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{name} ends after row {number} ({said}): the same command goes on from there") from None


def grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Consecutive rows, cut where a group has enough rows or characters."""
    group: list[Row] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += len(row.text or "")
        if len(group) >= ROWS_PER_GROUP or characters >= CHARACTERS_PER_GROUP:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _encode_groups(
    runner: Runner,
    groups: Iterable[tuple[int, list[Row]]],
    job: Mapping[str, object],
    journal: Journal,
    progress: Callable[[CorpusProgress], None] | None,
) -> CorpusProgress:
    """Encode the groups that the journal does not have, and keep them there; the state when all are done."""
    known: dict[int, Tensor] = {}
    state, n_groups = CorpusProgress(), 0
    for part in journal.parts():
        known[int(part["group"])] = part["digest"]
        state = _with(state, part)
    iterator = iter(groups)
    while batch := list(itertools.islice(iterator, _GROUPS_AT_ONCE)):
        jobs: list[dict[str, Any]] = [
            dict(job, group=number, rows=group, digest=_digest(group)) for number, group in batch
        ]
        n_groups += len(jobs)
        for unit in jobs:
            if unit["group"] in known and not torch.equal(known[unit["group"]], unit["digest"]):
                raise InputError(
                    f"{_span(unit['rows'])} are others than when {journal.folder} was begun: "
                    "restore the corpus, or remove that folder"
                )
        jobs = [unit for unit in jobs if unit["group"] not in known]
        failed: Done | None = None
        for done in runner.run(encode_group, jobs):
            if done.error is not None:
                failed = failed or done
                continue
            journal.add(done.value)
            state = _with(state, done.value)
            if progress:
                progress(state)
        if failed is not None:
            line = f"{_span(jobs[failed.number]['rows'])} failed: {failed.error}; finished rows are kept"
            raise (InputError if failed.mendable else RuntimeError)(line)
    if known and max(known) >= n_groups:
        raise InputError(
            f"{journal.folder} was begun with more rows than the corpus has: restore the corpus, or remove that folder"
        )
    in_order = sorted(state.passed_over, key=lambda passed: passed[0])  # whichever group was finished first
    return replace(state, passed_over=tuple(in_order))


def _in_order(journal: Journal, n_groups: int) -> Iterator[dict[str, Tensor]]:
    """The finished row groups in the order of the corpus, whichever was finished first; few are in memory at a time."""
    wanted = 0
    waiting: dict[int, dict[str, Tensor]] = {}
    while wanted < n_groups:
        for part in journal.parts():
            if int(part["group"]) >= wanted:
                waiting[int(part["group"])] = part
            while wanted in waiting:
                yield waiting.pop(wanted)
                wanted += 1
            if len(waiting) > _GROUPS_AT_ONCE:
                del waiting[max(waiting)]  # it is met again in the next round


def _with(state: CorpusProgress, part: Mapping[str, Tensor]) -> CorpusProgress:
    """The state after one more row group."""
    numbers = part["numbers"]
    _, _, _, length, n_vectors, n_right = numbers.T
    return replace(
        state,
        groups_done=state.groups_done + 1,
        rows_read=state.rows_read + int(part["rows_read"]),
        rows=state.rows + len(numbers),
        n_tokens=state.n_tokens + int(length.sum()),
        n_right=state.n_right + int(n_right.sum()),
        n_exact=state.n_exact + int((n_right == length).sum()),
        n_vectors=state.n_vectors + int(n_vectors.sum()),
        passed_over=state.passed_over + passed_over_in(part),
    )


def _span(group: list[Row]) -> str:
    return f"rows {group[0].number} to {group[-1].number}"


def _digest(group: list[Row]) -> Tensor:
    """What a row group's contents are known by, uint8, (32,)."""
    raw = json.dumps([(row.number, row.text, row.problem) for row in group]).encode()
    return torch.from_numpy(np.frombuffer(hashlib.sha256(raw).digest(), np.uint8).copy())
