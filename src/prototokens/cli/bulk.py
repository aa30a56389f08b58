"""The commands for many texts: pack-all and fit-all."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .runner_options import Gpus, Ray, Threads, Workers, check_runner, make_runner
from .terminal import Device, DeviceMap, Dtype, Json, Model, Revision, TrustRemoteCode, print_json

if TYPE_CHECKING:
    from ..runners.bulk import Outcome

bulk_app = typer.Typer()

OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")]
Force = Annotated[bool, typer.Option("--force", help="Make anew what is there.")]


@bulk_app.command("pack-all")
def pack_all_command(
    folder: Annotated[Path, typer.Argument(help="A folder of UTF-8 documents; folders in it are searched too.")],
    output: OutputFolder,
    force: Force = False,
    model: Model = "smollm2-135m",
    effort: Annotated[str, typer.Option(help="fast, balanced or thorough.")] = "balanced",
    ray: Ray = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    threads: Threads = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Pack every document of a folder; the same command goes on where it was stopped.

    Exit code 0: every document has its archive. 1: some have not; stderr tells why.

    Example: prototokens pack-all letters -o packed
    """
    from ..archive.pack import PackConfig
    from ..runners.bulk import pack_folder

    check_runner(ray, workers, gpus, threads)
    config, began = PackConfig(effort=effort), time.perf_counter()
    options = (revision, dtype, device, device_map, trust_remote_code)
    with closing(make_runner(model, options, ray, workers, gpus, threads)) as runner:
        outcomes = pack_folder(runner, folder, output, config, overwrite=force, report=_show)
    return _end(outcomes, time.perf_counter() - began, as_json)


@bulk_app.command("fit-all")
def fit_all_command(
    file: Annotated[Path, typer.Argument(help="Texts: a .txt file with one a line, or .jsonl, .csv or .parquet.")],
    output: OutputFolder,
    column: Annotated[str, typer.Option(help="The column that holds the texts; not for .txt.")] = "text",
    tokens: Annotated[int | None, typer.Option(help="Keep only the first N tokens of each text.", metavar="N")] = None,
    force: Force = False,
    model: Model = "smollm2-135m",
    preset: Annotated[str, typer.Option(help="The recipe: fast, tuned or paper.")] = "fast",
    restarts: Annotated[int, typer.Option(help="Starts of each text fitted side by side; the best is kept.")] = 1,
    seed: Annotated[int, typer.Option(help="What random draws are made from.")] = 0,
    ray: Ray = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    threads: Threads = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Fit every text of a list; the same command goes on where it was stopped.

    Exit code 0: every text has its file, reconstructed or not. 1: some failed; stderr tells why.

    Example: prototokens fit-all sentences.txt -o fitted
    """
    from ..fitting import recipes
    from ..runners.bulk import fit_texts
    from ..texts.corpora import documents

    check_runner(ray, workers, gpus, threads)
    if tokens is not None and tokens < 1:
        raise InputError(f"--tokens is {tokens}; it must be at least 1")
    config, began = recipes.preset(preset, restarts=restarts, seed=seed), time.perf_counter()
    found = [document.text for document in documents(file, column=column)]
    if file.suffix.lower() == ".txt":
        found = [line for line in found[0].splitlines() if line.strip()]
    options = (revision, dtype, device, device_map, trust_remote_code)
    with closing(make_runner(model, options, ray, workers, gpus, threads)) as runner:
        outcomes = fit_texts(runner, found, output, config, tokens=tokens, overwrite=force, report=_show)
    return _end(outcomes, time.perf_counter() - began, as_json)


def _show(outcome: Outcome) -> None:
    if outcome.error is not None:
        print(f"{outcome.file}: failed: {outcome.error}", file=sys.stderr, flush=True)
    elif outcome.made:
        print(f"{outcome.file}: done", file=sys.stderr, flush=True)


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
        print(f"{made} made, {len(outcomes) - made - len(failed)} there already, {len(failed)} failed")
    return 1 if failed else 0
