"""Many texts and documents at once, on any runner: each leaves a file, and what is there is not made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..archive.archive import read_archive
from ..archive.chunks import in_batches
from ..archive.pack import PackConfig, pack
from ..errors import InputError
from ..files.atomic import check_new_file, file_bytes, make_folder, utf8
from ..fitting.fit import fit_batch
from ..fitting.recipes import FitConfig
from ..lm.frozen import FrozenLM
from ..lm.identity import hash_ids
from ..proto_tokens import load, save
from .work import Runner, one

ARCHIVE_SUFFIX = ".proto"


@dataclass(frozen=True)
class Outcome:
    """What became of one text or document.

    Attributes:
        file: the file that was written, or was to be.
        record: what to tell about it, or None if it failed.
        error: why it failed, on one line, or None.
        made: whether it was made now; else it was there.
    """

    file: Path
    record: dict[str, Any] | None
    error: str | None = None
    made: bool = True


def pack_folder(
    runner: Runner,
    folder: Path,
    output: Path,
    config: PackConfig | None = None,
    *,
    overwrite: bool = False,
    report: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Pack every file of a folder, and of the folders in it, into an archive of the same name in another.

    A document whose archive is there already, of the same text and model, is passed over; one that cannot be packed is
    told of and does not stop the others.

    Args:
        runner: has the model.
        folder: UTF-8 texts, one document a file. Files whose names begin with a dot are left out.
        output: the folder of archives, made if it is not there: `a/b.txt` gives `a/b.txt.proto`.
        config: how to pack.
        overwrite: pack anew what is there.
        report: called with every outcome as it comes.

    Returns:
        One outcome for each document, in the order of their names.

    Raises:
        InputError: there is no such folder, it holds no file, or the output lies in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; one file is packed with: prototokens pack FILE -o ARCHIVE")
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{output}: lies in the folder that is packed; choose another")
    found = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [name for name in found if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise InputError(f"{folder}: holds no file to pack")
    targets = [output / f"{name}{ARCHIVE_SUFFIX}" for name in names]
    outcomes: dict[int, Outcome] = {}
    make_folder(output)
    model = one(runner, _fingerprint, None) if any(t.exists() for t in targets) and not overwrite else ""
    for number, (name, target) in enumerate(zip(names, targets, strict=True)):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not overwrite:
            outcomes[number] = _packed_before(folder / name, target, model)
            if report:
                report(outcomes[number])
    left = [number for number in range(len(names)) if number not in outcomes]
    config = config or PackConfig()
    jobs = [{"file": str(folder / names[n]), "output": str(targets[n]), "config": config, "overwrite": overwrite}
            for n in left]  # fmt: skip
    for done in runner.run(_pack_document, jobs):
        number = left[done.number]
        outcomes[number] = Outcome(targets[number], done.value, _told(done.error))
        if report:
            report(outcomes[number])
    return [outcomes[number] for number in range(len(names))]


def fit_texts(
    runner: Runner,
    texts: Sequence[str],
    output: Path,
    config: FitConfig,
    *,
    tokens: int | None = None,
    batch_tokens: int = 256,
    overwrite: bool = False,
    report: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Fit every text of a list; those of one length in tokens side by side.

    Which texts share a batch follows from the list alone. A batch is passed over if all of its files are there, each of
    its text; else all of it is fitted.

    Args:
        runner: has the model.
        texts: the texts.
        output: folder for the proto-tokens, made if it is not there; files are numbered in the list's order, from 1.
        config: the recipe.
        tokens: keep only the first so many tokens of each.
        batch_tokens: tokens of a batch at most; at least one text.
        overwrite: fit anew what is there.
        report: called with every outcome as it comes.

    Returns:
        One outcome for each text, in order; `record` has `length`, `exact`, `token_accuracy`, `steps` and `seconds`.

    Raises:
        InputError: a text is empty, or a file is there that holds another text, or was fitted on another model or by
            another recipe or seed.
    """
    make_folder(output)
    every, model = one(runner, _encode, {"texts": list(texts), "tokens": tokens})
    width = max(5, len(str(len(texts))))
    files = [output / f"{number:0{width}d}.safetensors" for number in range(1, len(texts) + 1)]
    outcomes: dict[int, Outcome] = {}
    batches: list[list[int]] = []
    for batch in in_batches([len(ids) for ids in every], batch_tokens):
        there = [None if overwrite else _fitted_before(files[n], every[n], model, config) for n in batch]
        if all(there):
            outcomes |= {n: outcome for n, outcome in zip(batch, there, strict=True) if outcome}
        else:
            batches.append(batch)
    if report:
        for outcome in outcomes.values():
            report(outcome)
    jobs = [{"ids": [every[n] for n in batch], "files": [str(files[n]) for n in batch], "config": config}
            for batch in batches]  # fmt: skip
    for done in runner.run(_fit_batch, jobs):
        for place, number in enumerate(batches[done.number]):
            outcomes[number] = Outcome(files[number], done.value[place] if done.value else None, _told(done.error))
            if report:
                report(outcomes[number])
    return [outcomes[number] for number in range(len(texts))]


def _pack_document(lm: FrozenLM, job: dict[str, Any]) -> dict[str, Any]:
    """Work: pack one document."""
    output = Path(job["output"])
    text = utf8(file_bytes(Path(job["file"])), job["file"])
    archive = pack(lm, text, job["config"], output=output, overwrite=job["overwrite"])
    return _pack_record(archive.text_bytes, output, archive.tokens, archive.share_from_vectors)


def _packed_before(file: Path, target: Path, model: str) -> Outcome:
    try:
        archive = read_archive(target)
        if archive.text_hash != hashlib.sha256(file_bytes(file)).hexdigest():
            raise InputError(f"{target}: holds another text than {file}; pack it anew (--force)")
        if archive.model.fingerprint != model:
            raise InputError(f"{target}: was packed for {archive.model.name}, another model; pack it anew (--force)")
    except InputError as error:
        return Outcome(target, None, str(error), made=False)
    record = _pack_record(archive.text_bytes, target, archive.tokens, archive.share_from_vectors)
    return Outcome(target, record, made=False)


def _pack_record(bytes_in: int, output: Path, tokens: int, share: float) -> dict[str, Any]:
    return {
        "file": str(output),
        "bytes_in": bytes_in,
        "bytes_out": output.stat().st_size,
        "tokens": tokens,
        "share_from_vectors": share,
    }


def _encode(lm: FrozenLM, job: dict[str, Any]) -> tuple[list[list[int]], str]:
    """Work: the ids of texts, and the model's fingerprint."""
    return [lm.encode(text)[: job["tokens"]].tolist() for text in job["texts"]], lm.identity.fingerprint


def _fingerprint(lm: FrozenLM, job: None) -> str:
    """Work: the model's fingerprint."""
    return lm.identity.fingerprint


def _fit_batch(lm: FrozenLM, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Work: fit texts of one length, and save each."""
    for file in job["files"]:
        check_new_file(file, overwrite=True)
    results = fit_batch(lm, torch.tensor(job["ids"]), job["config"])
    for file, result in zip(job["files"], results, strict=True):
        save(file, result.tokens, overwrite=True)
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


def _fitted_before(file: Path, ids: list[int], model: str, config: FitConfig) -> Outcome | None:
    """What a file of an earlier run holds, or None if there is none.

    Raises:
        InputError: it holds another text, or was fitted on another model or by another recipe or seed.
    """
    if not file.exists():
        return None
    tokens = load(file)
    made = tokens.provenance
    remedy = "choose another folder, or fit anew (--force)"
    if made.target_hash != hash_ids(torch.tensor(ids)):
        raise InputError(f"{file}: holds another text than the list; {remedy}")
    if made.model.fingerprint != model:
        raise InputError(f"{file}: was fitted on {made.model.name}, another model; {remedy}")
    if (made.preset, made.seed) != (config.preset, config.seed):
        raise InputError(f"{file}: was fitted by {made.preset} with seed {made.seed}; {remedy}")
    accuracy = tokens.provenance.token_accuracy
    record = {"file": str(file), "length": tokens.length, "exact": accuracy == 1, "token_accuracy": accuracy}
    return Outcome(file, record | {"steps": None, "seconds": None}, made=False)


def _told(error: str | None) -> str | None:
    return None if error is None else error.removeprefix("InputError: ")
