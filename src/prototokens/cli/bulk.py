"""The commands for many texts: pack-all and fit-all."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .exits import DONE, SOME_FAILED
from .options import (
    RECIPE_PANEL,
    SHIPPED,
    ChunkEncoderName,
    Json,
    ModelOptions,
    Preset,
    RunnerOptions,
    check_tokens,
    load_encoder,
)
from .spread import add_command
from .terminal import note, print_json, say

if TYPE_CHECKING:
    from ..runners.bulk import Outcome

PANEL = "Documents and many texts"
_COLUMN = "text"
_SHOWN_CHARACTERS = 40
bulk_app = typer.Typer()

OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")]
ForceAll = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


@add_command(bulk_app, "pack-all", PANEL)
def pack_all_command(
    folder: Annotated[Path, typer.Argument(help="A folder of UTF-8 documents; folders in it are searched too.")],
    output: OutputFolder,
    model: ModelOptions,
    runs: RunnerOptions,
    effort: Annotated[
        str, typer.Option(help="instant, fast, balanced or thorough.", rich_help_panel=RECIPE_PANEL)
    ] = "balanced",
    encoder: ChunkEncoderName = None,
    force: ForceAll = False,
    as_json: Json = False,
) -> int:
    """Pack every document of a folder.

    Finished archives are kept: the same command resumes.

    Exit code 0: every document has its archive. 3: some have not; stderr says why.

    Example: prototokens pack-all letters -o packed
    """
    from ..archive.pack import PackConfig
    from ..runners.bulk import pack_folder
    from ..runners.package_encoder import encoder_of_the_package

    runs.check()
    config, began = PackConfig(effort=effort, encoder=load_encoder(encoder)), time.perf_counter()
    with closing(runs.runner(model)) as runner:
        if encoder == SHIPPED:
            config = replace(config, encoder=encoder_of_the_package(runner))
        outcomes = pack_folder(runner, folder, output, config, overwrite=force, report=_show)
    return _end(outcomes, time.perf_counter() - began, as_json)


@add_command(bulk_app, "fit-all", PANEL)
def fit_all_command(
    file: Annotated[Path, typer.Argument(help="Texts: a .txt file with one a line, or .jsonl, .csv or .parquet.")],
    output: OutputFolder,
    model: ModelOptions,
    runs: RunnerOptions,
    column: Annotated[str, typer.Option(help="The column that holds the texts; not for .txt.")] = _COLUMN,
    n_tokens: Annotated[
        int | None, typer.Option("--tokens", help="Keep only the first N tokens of each text.", metavar="N")
    ] = None,
    preset: Preset = "fast",
    restarts: Annotated[
        int,
        typer.Option(
            help="Number of starts per text that are fitted side by side; the best is kept.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of all random draws.", rich_help_panel=RECIPE_PANEL)] = 0,
    force: ForceAll = False,
    as_json: Json = False,
) -> int:
    """Fit every text of a list.

    Finished files are kept: the same command resumes.

    Exit code 0: every text has its file, exact or not. 3: some failed; stderr says why.

    Example: prototokens fit-all sentences.txt -o fitted
    """
    from ..fitting import recipes
    from ..runners.bulk import fit_texts
    from ..texts.lists import read_list

    runs.check()
    check_tokens(n_tokens)
    config, began = recipes.preset(preset, restarts=restarts, seed=seed), time.perf_counter()
    if column != _COLUMN and file.suffix.lower() == ".txt":
        raise InputError(f"--column is {column!r}, and a .txt file has no columns: leave it out")
    rows = read_list(file, column)
    for row in rows:
        if row.text is None and row.problem is None:
            note(f"{file}, row {row.number}: is blank and left out")

    text_of = {row.number: row.text for row in rows}

    def show(outcome: Outcome) -> None:
        number = int(outcome.file.stem)
        if outcome.error is not None and file.name not in outcome.error:
            outcome = replace(outcome, error=f"{file}, row {number}: {outcome.error}")
        _show(outcome, _beginning(number, text_of[number]))

    with closing(runs.runner(model)) as runner:
        outcomes = fit_texts(runner, rows, output, config, max_tokens=n_tokens, overwrite=force, report=show)
    return _end(outcomes, time.perf_counter() - began, as_json)


def _show(outcome: Outcome, text: str = "") -> None:
    """Say on stderr what became of one text or document; `text` tells which one it is."""
    if outcome.error is not None:
        note(f"{outcome.file}: failed: {outcome.error}{text}")
    elif outcome.made:
        missed = outcome.record is not None and outcome.record.get("exact") is False
        remark = f"; note: {outcome.note}" if outcome.note else ""
        note(f"{outcome.file}: {'done, NOT exact' if missed else 'done'}{text}{remark}")


def _beginning(number: int, text: str | None) -> str:
    """A text's number and its first words, in brackets, on one line; nothing where there is no text."""
    if text is None:
        return ""
    words = " ".join(text[:1000].split())
    shown = words if len(words) <= _SHOWN_CHARACTERS else f"{words[: _SHOWN_CHARACTERS - 1]}…"
    return f" (text {number}: {json.dumps(shown, ensure_ascii=False)})"


def _end(outcomes: list[Outcome], seconds: float, as_json: bool) -> int:
    failed = [o for o in outcomes if o.error is not None]
    made = sum(o.made for o in outcomes) - sum(o.made for o in failed)
    if as_json:
        print_json(
            {
                "files": [o.record for o in outcomes if o.record is not None],
                "failed": [{"file": str(o.file), "error": o.error} for o in failed],
                "made": made,
                "seconds": seconds,
            }
        )
    else:
        say(f"{made} made, {len(outcomes) - made - len(failed)} there already, {len(failed)} failed")
    return SOME_FAILED if failed else DONE
