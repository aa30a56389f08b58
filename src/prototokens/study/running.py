"""Running a study: texts are drawn, cells get their keys, runners do what is left, one writer keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files.atomic import file_bytes
from ..files.record import write_record
from ..lm.identity import Identity, hash_ids
from ..proto_tokens import save
from ..runners.work import Done, Runner, one
from ..texts.corpora import SOURCES, folder_files
from . import study_module
from .cells import Batch, BoundCell, Settings, cell_keys
from .fits import cell_arrangement, recipe_hash, start_hash
from .jobs import Measurement, describe, draw_texts, measure
from .scales import CONTINUED, Scale, scale_named
from .store import DONE, FAILED, Store


class ModelUnavailable(InputError):
    """A model that cannot be loaded, or that is too small for the scale: studies of other models are not affected."""


@dataclass(frozen=True)
class StudyProgress:
    """How far a run has come.

    Attributes:
        label: the batch that was written last.
        cells: cells in all.
        done: cells that have a result.
        failed: cells that failed.
    """

    label: str
    cells: int
    done: int
    failed: int


@dataclass(frozen=True, eq=False)
class _Bound:
    """A batch whose cells know their texts."""

    label: str
    cells: list[BoundCell]
    job: dict[str, Any]


def run_study(
    store: Store,
    runner: Runner,
    study: str,
    scale: Scale,
    *,
    retry_failed: bool = False,
    progress: Callable[[StudyProgress], None] | None = None,
) -> StudyProgress:
    """Measure every cell of a study that the store does not hold yet.

    Batches are run whole, in the composition that the grid gives them, also where some of their cells are done
    already; what is done is never written again. Each cell is written in a transaction of its own, its vectors
    before it. So the same call finishes what was killed at any point.

    Args:
        store: where results are kept, open to write.
        runner: has the model.
        study: name of the study.
        scale: how large, and on which texts.
        retry_failed: measure failed cells again.
        progress: called whenever a batch is written, and once before the first.

    Returns:
        The last progress.

    Raises:
        ModelUnavailable: the model cannot be loaded, or has too few positions for the scale.
        InputError: a text source cannot be had, or the store cannot be written.
    """
    card = _card(store, runner)
    batches = study_module(study).lay_out(scale.name)
    texts = {source: _texts(store, runner, card, scale, source) for source in _sources(batches)}
    bound = [_bind(batch, number, card, scale, texts) for number, batch in enumerate(batches)]
    store.plan(cell for batch in bound for cell in batch.cells)
    finished = {DONE} if retry_failed else {DONE, FAILED}
    status = store.status_of(cell.key for batch in bound for cell in batch.cells)
    left = [batch for batch in bound if any(status[cell.key] not in finished for cell in batch.cells)]

    def report(label: str) -> StudyProgress:
        states = list(status.values())
        state = StudyProgress(label, len(states), states.count(DONE), states.count(FAILED))
        if progress:
            progress(state)
        return state

    last = report("")
    for done in runner.run(measure, [batch.job for batch in left]):
        batch = left[done.number]
        for cell, state in _write(store, batch, done, card["origin"], status, finished):
            status[cell.key] = state
        last = report(batch.label)
    return last


def _card(store: Store, runner: Runner) -> dict[str, Any]:
    """What `describe` says of the runner's model."""
    try:
        card: dict[str, Any] = one(runner, describe, store.fingerprints())
    except InputError as error:
        raise ModelUnavailable(str(error)) from None
    except Exception as error:  # whatever a library raises while it loads weights, a lack of memory included
        raise ModelUnavailable(Done.failed(0, error).error) from error
    return card


def _sources(batches: Sequence[Batch]) -> list[str]:
    return sorted({settings["source"] for batch in batches for settings in batch.cells})


def _texts(store: Store, runner: Runner, card: dict[str, Any], scale: Scale, source: str) -> list[list[int]]:
    """The texts of one kind at full length, drawn once for a store: generated ones depend on the device."""
    corpus, count = scale.corpora[source], scale.counts[source]
    positions = card["max_positions"]
    length = scale.length_of(source)
    length = length if positions is None else min(length, positions - scale.context_tokens)
    if length < 1:
        raise ModelUnavailable(
            f"{card['name']} has {positions} positions; the scale {scale.name} needs more than "
            f"{scale.context_tokens}: choose a smaller scale"
        )
    key = f"{card['origin']['fingerprint']} {source} {corpus} {count} x {length} after {scale.context_tokens}"
    per_context = scale.per_context if source == CONTINUED else 1
    if per_context > 1:
        key += f", {per_context} for each context"
    if corpus not in SOURCES and Path(corpus).exists():
        key += f" {_contents_hash(Path(corpus))}"
    kept = store.texts(key)
    if kept is None:
        job = {"source": corpus, "length": length, "count": count}
        job |= {"context_tokens": scale.context_tokens, "per_context": per_context}
        kept = one(runner, draw_texts, job)
        store.keep_texts(key, kept)
    return kept


def _contents_hash(path: Path) -> str:
    """A hash of a file's bytes, or of the names and bytes of all files that are read in a folder."""
    if not path.is_dir():
        return hashlib.sha256(file_bytes(path)).hexdigest()[:16]
    files = {name.as_posix(): hashlib.sha256(file_bytes(file)).hexdigest() for file, name in folder_files(path).items()}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def _bind(batch: Batch, number: int, card: dict[str, Any], scale: Scale, texts: dict[str, list[list[int]]]) -> _Bound:
    origin = card["origin"]
    ids = [texts[cell["source"]][cell["text"]][: cell["tokens"]] for cell in batch.cells]
    hashes = [hash_ids(torch.tensor(text_ids)) for text_ids in ids]
    settings = [cell | _conditions(cell, Identity(**card["identity"])) for cell in batch.cells]
    keys = cell_keys(batch.study, origin["fingerprint"], origin["dtype"], settings, hashes)
    name = f"{batch.study} {scale.name} {origin['fingerprint'][:12]} {number:04d} {batch.label}"
    cells = []
    for position, (key, cell, text_hash) in enumerate(zip(keys, settings, hashes, strict=True)):
        columns = {
            "model": _short(card["name"]),
            **cell,
            "corpus": _short(scale.corpora[cell["source"]]),
            "text_hash": text_hash,
        }
        cells.append(BoundCell(key, batch.study, name, position, columns))
    return _Bound(batch.label, cells, {"study": batch.study, "cells": list(batch.cells), "ids": ids})


def _conditions(cell: Settings, model: Identity) -> Settings:
    """What a cell's fit takes over from the package, by content: an upgrade that changes it makes other cells."""
    start = start_hash(cell["recipe"], cell.get("start"), cell_arrangement(cell), model)
    conditions = {"recipe_hash": recipe_hash(cell["recipe"])} | ({} if start is None else {"start_hash": start})
    return conditions | {"pass_gigabytes": scale_named(cell["scale"]).pass_gigabytes}


def _short(name: str) -> str:
    """A model's or corpus's name without the path of its folder or file, which tells about a machine."""
    return Path(name).name if Path(name).exists() else name


def _write(
    store: Store, batch: _Bound, done: Done, origin: dict[str, Any], status: dict[str, str], finished: set[str]
) -> Iterator[tuple[BoundCell, str]]:
    """Write those cells of a batch that have no result yet."""
    measurements: list[Measurement] | None = done.value
    for cell in batch.cells:
        if status[cell.key] in finished:
            continue
        if measurements is None:
            store.fail(cell.key, done.error or "", origin)
            yield cell, FAILED
            continue
        measurement = measurements[cell.position]
        _keep_vectors(store, cell, measurement)
        store.finish(cell.key, measurement.columns, origin)
        yield cell, DONE


def _keep_vectors(store: Store, cell: BoundCell, measurement: Measurement) -> None:
    if measurement.vectors is None:
        return
    store.vectors.mkdir(exist_ok=True)
    path = store.vectors_path(cell.key)
    if isinstance(measurement.vectors, torch.Tensor):
        record = {"key": cell.key, "settings": cell.settings}
        write_record(path, "[mem] vectors", {"memory": measurement.vectors}, record, overwrite=True)
    else:
        save(path, measurement.vectors, overwrite=True)
