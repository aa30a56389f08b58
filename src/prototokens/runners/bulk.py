"""Many texts and documents, on any runner: each gets a file, and what is finished is not made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..archive.archive import read_archive
from ..archive.chunks import in_batches
from ..archive.efforts import effort_named
from ..archive.pack import PackConfig, pack
from ..archive.settings import packed_otherwise
from ..errors import InputError
from ..files.atomic import check_new_file, file_bytes, make_folder, utf8
from ..fitting.fit import check_memory, fit_batch
from ..fitting.recipes import FitConfig
from ..fitting.starts import start_name
from ..lm.frozen import FrozenLM
from ..lm.identity import Identity, hash_ids, same_model
from ..proto_tokens import Provenance, load, save
from ..texts.tables import Row
from .work import Runner, one

ARCHIVE_SUFFIX = ".proto"


@dataclass(frozen=True)
class Outcome:
    """The result for one text or document.

    Attributes:
        file: the file that was written, or was to be.
        record: its description as JSON values, or None if it failed.
        error: why it failed, on one line, or None.
        made: whether it was made now; otherwise it existed.
        note: what the user should know all the same, on one line, or None.
    """

    file: Path
    record: dict[str, Any] | None
    error: str | None = None
    made: bool = True
    note: str | None = None


OutcomeReport = Callable[[Outcome], None]


class _Outcomes(dict[int, Outcome]):
    """Outcomes by number, each reported when it is known."""

    def __init__(self, report: OutcomeReport | None) -> None:
        super().__init__()
        self._report = report

    def __setitem__(self, number: int, outcome: Outcome) -> None:
        super().__setitem__(number, outcome)
        if self._report:
            self._report(outcome)


def pack_folder(
    runner: Runner,
    folder: Path,
    output: Path,
    config: PackConfig | None = None,
    *,
    overwrite: bool = False,
    report: OutcomeReport | None = None,
) -> list[Outcome]:
    """Pack every file of a folder, and of the folders in it, into an archive of the same name in another.

    A document is skipped if its archive exists, holds the same text, and was packed for the same model in the same way.
    A document that cannot be packed is reported and does not stop the rest.

    Args:
        runner: has the model.
        folder: UTF-8 texts, one document a file. Files whose names begin with a dot are left out.
        output: the folder of archives, made if it does not exist: `a/b.txt` gives `a/b.txt.proto`.
        config: how to pack.
        overwrite: pack existing ones again.
        report: called with every outcome when it is known.

    Returns:
        One outcome for each document, in the order of their names.

    Raises:
        InputError: there is no such folder, it holds no file, or the output lies in it; or the encoder belongs to
            another model, or the effort needs one and the package has none for the model.
    """
    names = _documents_in(folder, output)
    targets = [output / f"{name}{ARCHIVE_SUFFIX}" for name in names]
    config = config or PackConfig()
    if config.encoder is not None or effort_named(config.effort).needs_encoder:
        one(runner, _check_encoder, config)  # said once, where it holds for every document
    outcomes = _Outcomes(report)
    for target in targets:
        make_folder(target.parent)
    existing = [n for n, target in enumerate(targets) if target.exists() and not overwrite]
    if existing:
        pairs = [(folder / names[n], targets[n]) for n in existing]
        for number, outcome in zip(existing, _existing_archives(runner, pairs, config), strict=True):
            outcomes[number] = outcome
    left = [number for number in range(len(names)) if number not in outcomes]
    jobs = [{"file": str(folder / names[n]), "output": str(targets[n]), "config": config, "overwrite": overwrite}
            for n in left]  # fmt: skip
    for done in runner.run(_pack_document, jobs):
        number = left[done.number]
        outcomes[number] = Outcome(targets[number], done.value, done.error)
    return [outcomes[number] for number in range(len(names))]


def _documents_in(folder: Path, output: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; one file is packed with: prototokens pack FILE -o ARCHIVE")
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output}: lies in the folder that is packed; choose another")
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [name for name in files if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise InputError(f"{folder}: holds no file to pack")
    return names


def _pack_document(lm: FrozenLM, job: dict[str, Any]) -> dict[str, Any]:
    """Work: pack one document."""
    output = Path(job["output"])
    text = utf8(file_bytes(Path(job["file"])), job["file"])
    archive = pack(lm, text, job["config"], output=output, overwrite=job["overwrite"])
    return _pack_record(archive.text_bytes, output, archive.n_tokens, archive.share_from_vectors)


def _check_encoder(lm: FrozenLM, config: PackConfig) -> None:
    """Work: refuse an encoder of another model, or an effort that needs one where the package has none."""
    encoder = config.settled(lm).encoder
    if encoder is not None:
        encoder.check(lm.identity)


def _existing_archives(runner: Runner, pairs: Sequence[tuple[Path, Path]], config: PackConfig) -> list[Outcome]:
    """What existing archives of these documents are worth: the same work, or an error that says how they differ."""
    results: list[dict[str, Any] | str] = []
    made_by: list[tuple[Identity, dict[str, Any]] | None] = []
    for file, target in pairs:
        try:
            archive = read_archive(target)
            if archive.text_hash != hashlib.sha256(file_bytes(file)).hexdigest():
                raise InputError(f"{target}: holds another text than {file}; pack it anew (--force)")
        except InputError as error:
            results.append(str(error))
            made_by.append(None)
            continue
        results.append(_pack_record(archive.text_bytes, target, archive.n_tokens, archive.share_from_vectors))
        made_by.append((archive.model, dict(archive.packing)))
    differences = one(runner, _packing_differences, {"config": config, "made_by": made_by})
    outcomes = []
    for (_, target), result, difference in zip(pairs, results, differences, strict=True):
        if isinstance(result, str):
            outcomes.append(Outcome(target, None, result, made=False))
        elif difference:
            problem = f"{target}: was packed {difference}; pack it anew (--force)"
            outcomes.append(Outcome(target, None, problem, made=False))
        else:
            outcomes.append(Outcome(target, result, made=False))
    return outcomes


def _packing_differences(lm: FrozenLM, job: dict[str, Any]) -> list[str | None]:
    """Work: how archives differ from what would be packed now, if they do."""
    differences: list[str | None] = []
    for made_by in job["made_by"]:
        difference = None
        if made_by is not None:
            model, packing = made_by
            names = packed_otherwise(lm, job["config"], packing)
            if not same_model(model, lm.identity):
                difference = f"for {model.name}, another model"
            elif names:
                difference = f"with another {', '.join(names)}"
        differences.append(difference)
    return differences


def _pack_record(bytes_in: int, output: Path, n_tokens: int, share: float) -> dict[str, Any]:
    return {
        "file": str(output),
        "bytes_in": bytes_in,
        "bytes_out": output.stat().st_size,
        "tokens": n_tokens,
        "share_from_vectors": share,
    }


def fit_texts(
    runner: Runner,
    texts: Sequence[str | Row],
    output: Path,
    config: FitConfig,
    *,
    max_tokens: int | None = None,
    batch_tokens: int = 256,
    overwrite: bool = False,
    report: OutcomeReport | None = None,
) -> list[Outcome]:
    """Fit every text of a list; texts of the same length in tokens are fitted side by side.

    Which texts share a batch follows from the list alone. A batch is skipped if all of its files exist; otherwise all
    of it is fitted. A text that cannot be fitted is reported and does not stop the rest. So is an existing file that is
    damaged, holds another text, or was fitted on another model or in another way; it is kept as it is.

    Args:
        runner: has the model.
        texts: the texts, or the rows of a list (see `read_list`). Blank rows are left out.
        output: folder for the proto-tokens, made if it does not exist. Files are numbered by the list's rows, from 1.
        config: the recipe.
        max_tokens: keep only the first so many tokens of each.
        batch_tokens: tokens of a batch at most; at least one text.
        overwrite: fit existing ones again.
        report: called with every outcome when it is known.

    Returns:
        One outcome for each text and each row that could not be read, in order. `record` has `length`, `exact`,
        `token_accuracy`, `steps` and `seconds`.

    Raises:
        InputError: the folder cannot be made, or memory has no room for a fit of any of the texts.
    """
    make_folder(output)
    rows = [text if isinstance(text, Row) else Row(n, text) for n, text in enumerate(texts, 1)]
    width = max(5, len(str(rows[-1].number))) if rows else 5
    file_of = {row.number: output / f"{row.number:0{width}d}.safetensors" for row in rows}
    outcomes = _Outcomes(report)
    for row in rows:
        if row.problem:
            outcomes[row.number] = Outcome(file_of[row.number], None, row.problem)
    readable = {row.number: row.text for row in rows if row.text is not None}
    existing = {} if overwrite else {n: _recorded(file_of[n]) for n in readable if file_of[n].exists()}
    models = [made_by.model if isinstance(made_by, Provenance) else None for made_by in existing.values()]
    job = {"texts": list(readable.values()), "max_tokens": max_tokens, "config": config, "models": models}
    encoded = one(runner, _encode, job)
    texts_of = dict(zip(readable, encoded["texts"], strict=True))
    for number, (_, error, _) in texts_of.items():
        if error is not None:
            outcomes[number] = Outcome(file_of[number], None, f"text {number}: {error}")
    ids_of = {number: ids for number, (ids, error, _) in texts_of.items() if error is None}
    finished = {
        number: _finished(file_of[number], ids_of[number], made_by, is_same, encoded["settings"])
        for (number, made_by), is_same in zip(existing.items(), encoded["same_models"], strict=True)
        if number in ids_of
    }
    refused = {number: outcome for number, outcome in finished.items() if outcome.error is not None}
    batches = [batch for batch in _batches(ids_of, batch_tokens) if not finished.keys() >= set(batch)]
    left = {number for batch in batches for number in batch} - refused.keys()
    for number in sorted(finished.keys() - left):
        outcomes[number] = finished[number]
    jobs = [{"ids": [ids_of[n] for n in batch], "config": config,
             "files": [str(file_of[n]) if n in left else None for n in batch]}
            for batch in batches]  # fmt: skip
    for done in runner.run(_fit_batch, jobs):
        for place, number in enumerate(batches[done.number]):
            if number in left:
                record = done.value[place] if done.value else None
                outcomes[number] = Outcome(file_of[number], record, done.error, note=texts_of[number][2])
    return [outcomes[row.number] for row in rows if row.number in outcomes]


def _batches(ids_of: dict[int, list[int]], batch_tokens: int) -> list[list[int]]:
    """Numbers of the texts that are fitted side by side."""
    numbers = list(ids_of)
    return [[numbers[n] for n in batch] for batch in in_batches([len(ids) for ids in ids_of.values()], batch_tokens)]


def _encode(lm: FrozenLM, job: dict[str, Any]) -> dict[str, Any]:
    """Work: for each text its ids, or why there are none, and a note; and what existing files must agree with."""
    texts = [_encoded(lm, text, job["max_tokens"]) for text in job["texts"]]
    lengths = {len(ids) for ids, error, _ in texts if error is None}
    if lengths:
        check_memory(lm, job["config"], 1, min(lengths))  # said once, where it holds for every text
    return {
        "texts": texts,
        "settings": {length: _settings(lm, job["config"], length) for length in sorted(lengths)},
        "same_models": [model is not None and same_model(model, lm.identity) for model in job["models"]],
    }


def _encoded(lm: FrozenLM, text: str, max_tokens: int | None) -> tuple[list[int], str | None, str | None]:
    try:
        ids = lm.encode(text)
    except InputError as error:
        return [], str(error), None
    is_kept = lm.decode(ids) == text
    note = None if is_kept else f"the tokenizer of {lm.identity.name} does not keep this text as it is"
    return ids[:max_tokens].tolist(), None, note


def _settings(lm: FrozenLM, config: FitConfig, length: int) -> dict[str, Any]:
    """What fits of `length` tokens have in common beside the model; JSON values.

    The arrangement and the start are those that the recipe means for this length.
    """
    settled = config.at(length)
    recipe = asdict(settled) | {
        "tokens_per_vector": config.tokens_per_vector,
        "start": start_name(lm, settled),
        "dtype": lm.dtype_name,
    }
    settings: dict[str, Any] = json.loads(json.dumps(recipe))  # as it comes back from a file
    return settings


def _fit_batch(lm: FrozenLM, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Work: fit texts of one length, and save each that has a file."""
    for file in filter(None, job["files"]):
        check_new_file(file, overwrite=True)
    target_ids = torch.tensor(job["ids"])
    results = fit_batch(lm, target_ids, job["config"])
    settings = _settings(lm, job["config"], target_ids.shape[1])
    for file, result in zip(job["files"], results, strict=True):
        if file is not None:
            provenance = replace(result.tokens.provenance, recipe=settings)
            save(file, replace(result.tokens, provenance=provenance), overwrite=True)
    return [
        {
            "file": file,
            "length": result.tokens.length,
            "exact": result.exact,
            "token_accuracy": result.token_accuracy,
            "steps": result.steps,
            "seconds": result.seconds,
        }
        for file, result in zip(job["files"], results, strict=True)
    ]


def _recorded(file: Path) -> Provenance | InputError:
    """What an existing file says about its fit, or why it cannot be read."""
    try:
        return load(file).provenance
    except InputError as error:
        return error


def _finished(
    file: Path,
    ids: list[int],
    made_by: Provenance | InputError,
    is_same_model: bool,
    settings_of_length: dict[int, dict[str, Any]],
) -> Outcome:
    """The outcome of an earlier call that made this file, or why the file cannot be taken for it."""
    if isinstance(made_by, InputError):
        return Outcome(file, None, str(made_by), made=False)
    difference = _difference(made_by, ids, is_same_model, settings_of_length[len(ids)])
    if difference is not None:
        problem = f"{file}: {difference}; choose another folder, or fit anew (--force)"
        return Outcome(file, None, problem, made=False)
    accuracy = made_by.token_accuracy
    record = {"file": str(file), "length": len(ids), "exact": accuracy == 1, "token_accuracy": accuracy}
    return Outcome(file, record | {"steps": None, "seconds": None}, made=False)


def _difference(made_by: Provenance, ids: list[int], is_same_model: bool, settings: dict[str, Any]) -> str | None:
    """How a file's fit differs from the one that is asked for, or None."""
    if made_by.target_hash != hash_ids(torch.tensor(ids)):
        return "holds another text than the list"
    if not is_same_model:
        return f"was fitted on {made_by.model.name}, another model"
    if not isinstance(made_by.recipe, dict):
        return "does not say by which recipe it was fitted"
    recorded = made_by.recipe
    differing = [name for name, value in settings.items() if recorded.get(name, value) != value]
    if not differing:
        return None
    values = ", ".join(f"{name} {_short(recorded[name])}, not {_short(settings[name])}" for name in differing)
    return f"was fitted by {made_by.preset} with seed {made_by.seed}: {values}"


def _short(value: Any) -> str:
    said = str(value)
    return said if len(said) <= 40 else f"{said[:37]}..."
