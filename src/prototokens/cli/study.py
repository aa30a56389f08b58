"""The commands around studies: run, status, export, merge."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..study import STUDIES
from .runner_options import Gpus, Ray, Threads, Workers, check_runner, make_runner
from .terminal import Device, DeviceMap, Dtype, Revision, TrustRemoteCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..study.running import StudyProgress
    from ..study.scales import Scale

study_app = typer.Typer(
    name="study", help="The paper's tables and figures on any model, resumable.", no_args_is_help=False
)

_RESUMES = "The same command goes on where it was stopped."
_EXIT_CODES = "Exit code 0: every cell has a result, solved or not. 1: some failed; the export tells why."

StoreFile = Annotated[Path, typer.Option("--store", help="The SQLite file of results; vectors go beside it.")]


def run_command(
    context: typer.Context,
    store: Annotated[
        Path | None, typer.Option(help="The SQLite file of results, made if it is not there; vectors go beside it.")
    ] = None,
    scale: Annotated[str, typer.Option(help="smoke, laptop or paper.")] = "laptop",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="smollm2-135m (built in), a Hub id, a folder, or a .gguf file; may be given several times. "
            "Default: the built-in one, at the paper's scale the paper's six.",
            metavar="MODEL",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List batches with time and memory; run nothing, load no weights.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure failed cells again.")] = False,
    old: Annotated[
        str | None, typer.Option(help="Where old prose comes from: old, pg19 or a file; default: the scale's.")
    ] = None,
    recent: Annotated[
        str | None, typer.Option(help="Where recent prose comes from: recent, fanfics or a file; default: the scale's.")
    ] = None,
    ray: Ray = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    threads: Threads = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
) -> int:
    """Run one study, or all; the text below stands in their help."""
    from ..study.scales import scale_named

    assert context.info_name is not None
    names = list(STUDIES) if context.info_name == "all" else [context.info_name]
    size = scale_named(scale).with_corpora(old=old, recent=recent)
    models = model or list(size.models)
    check_runner(ray, workers, gpus, threads)
    if dry_run:
        return _dry_run(names, size, models, revision)
    if store is None:
        raise InputError("say where to keep results: --store FILE")
    options = (revision, dtype, device, device_map, trust_remote_code)
    from ..lm.sources import find_source
    from ..study.running import run_study
    from ..study.store import Store

    if ray is None and workers is None:  # elsewhere models may lie where this process cannot see them
        find_source(models[0], revision)
    failed = 0
    with Store.open(store, write=True) as opened:
        for name in models:
            with closing(make_runner(name, options, ray, workers, gpus, threads)) as runner:
                for study in names:
                    show = _progress(f"{study} on {name}")
                    end = run_study(opened, runner, study, size, retry_failed=retry_failed, progress=show)
                    print(f"{study} on {name}: {end.done} of {end.cells} cells done, {end.failed} failed", flush=True)
                    failed += end.failed
    return 1 if failed else 0


for _name, _line in {**STUDIES, "all": "All studies, one after another."}.items():
    study_app.command(_name, help=f"{_line}\n\n{_RESUMES}\n\n{_EXIT_CODES}")(run_command)


@study_app.command("status")
def status_command(store: StoreFile) -> int:
    """Show how many cells of each study are done, failed, and left. Loads no model."""
    from ..study.store import Store

    with Store.open(store) as opened:
        counts = opened.counts()
    print(f"{'study':14}{'model':28}{'scale':10}{'done':>6}{'failed':>8}{'left':>6}")
    for c in counts:
        print(f"{c['study']:14}{c['model']:28}{c['scale']:10}{c['done']:>6}{c['failed']:>8}{c['planned']:>6}")
    return 0


@study_app.command("export")
def export_command(
    store: StoreFile,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file.")] = None,
    study: Annotated[str | None, typer.Option(help="One study only.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> int:
    """Write the rows of finished and failed cells to a table, the key first. Loads no model."""
    from ..study.export import write_csv, write_parquet
    from ..study.store import Store

    if csv is None and parquet is None:
        raise InputError("say where to: --csv FILE or --parquet FILE")
    if study is not None and study not in STUDIES:
        raise InputError(f"unknown study {study!r}; choose one of: {' '.join(STUDIES)}")
    with Store.open(store) as opened:
        rows = opened.rows(study)
    if csv is not None:
        write_csv(csv, rows, overwrite=force)
    if parquet is not None:
        write_parquet(parquet, rows, overwrite=force)
    print(f"{len(rows)} rows")
    return 0


@study_app.command("merge")
def merge_command(
    others: Annotated[list[Path], typer.Argument(help="Stores to take over from; they stay as they are.")],
    store: StoreFile,
) -> int:
    """Take what other stores have finished into one. Loads no model."""
    from ..study.store import Store

    for path in others:  # refused before anything is made
        Store.open(path).close()
    with Store.open(store, write=True) as opened:
        for path in others:
            if path.exists() and store.exists() and path.samefile(store):
                raise InputError(f"{path}: a store cannot be merged into itself")
            with Store.open(path) as other:
                print(f"{opened.merge(other)} cells from {path}")
    return 0


def _dry_run(names: list[str], scale: Scale, models: list[str], revision: str | None) -> int:
    from ..study import study_module
    from ..study.estimates import duration, size_of, table

    for model in models:
        size = size_of(model, revision)
        for name in names:
            lines, total = table(study_module(name).lay_out(scale.name), size, scale.name)
            print("\n".join(lines))
            print(f"{name} on {model}: at most {duration(total.seconds)}, {total.gigabytes:.1f} GB\n")
    return 0


def _progress(label: str) -> Callable[[StudyProgress], None]:
    """A line on stderr whenever a batch is written."""
    import time

    began, first = time.monotonic(), -1

    def show(p: StudyProgress) -> None:
        nonlocal first
        ended = p.done + p.failed
        if first < 0:
            first = ended
        took = time.monotonic() - began
        left = f", about {took / (ended - first) * (p.cells - ended):.0f} s left" if ended > first else ""
        print(f"{label}: {ended} of {p.cells} cells{left}  {p.label}".rstrip(), file=sys.stderr, flush=True)

    return show
