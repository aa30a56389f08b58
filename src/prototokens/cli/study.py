"""The commands around studies: run, status, export, merge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..study import STUDIES
from .exits import DONE, SOME_FAILED
from .options import MODEL_PANEL, LoadOptions, ModelOptions, RunnerOptions
from .spread import add_command
from .terminal import note, progress_line, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..study.running import StudyProgress
    from ..study.scales import Scale

STUDIES_PANEL, STORE_PANEL = "Studies", "Results"
_ABOUT = "Measure the paper's tables and figures on any model."
study_app = typer.Typer(name="study", help=_ABOUT, short_help=_ABOUT)

_RESUMES = "The same command resumes after an interruption."
_EXIT_CODES = (
    "Exit code 0: every cell has a result, solved or not. 3: some failed (the export says why), or a model was passed "
    "over."
)

StoreFile = Annotated[Path, typer.Option("--store", help="The SQLite file of results; vectors go beside it.")]


def run_command(
    context: typer.Context,
    loading: LoadOptions,
    runs: RunnerOptions,
    store: Annotated[
        Path | None, typer.Option(help="The SQLite file of results, created if missing; vectors go beside it.")
    ] = None,
    scale: Annotated[str, typer.Option(help="smoke, laptop or paper.")] = "laptop",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="smollm2-135m (built in), a Hub id, a folder, or a .gguf file; may be given several times. "
            "Default: the built-in one; at scale paper, the paper's six.",
            metavar="MODEL",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List batches with their time and memory. Runs nothing."),
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure failed cells again.")] = False,
    old: Annotated[
        str | None, typer.Option(help="Where old prose comes from: old, pg19 or a file; default: the scale's.")
    ] = None,
    recent: Annotated[
        str | None, typer.Option(help="Where recent prose comes from: recent, fanfics or a file; default: the scale's.")
    ] = None,
) -> int:
    """Run one study, or all; `STUDIES` has their help."""
    from ..study.scales import scale_named
    from ..texts.corpora import SOURCES, check_file

    assert context.info_name is not None
    names = list(STUDIES) if context.info_name == "all" else [context.info_name]
    for source in filter(None, (old, recent)):
        if source not in SOURCES:
            check_file(source, or_folder=True)
    size = scale_named(scale).with_corpora(old=old, recent=recent)
    models = model or list(size.models)
    runs.check()
    if dry_run:
        return _dry_run(names, size, models, loading.revision)
    if store is None:
        raise InputError("say where to keep results: --store FILE")
    from ..lm.sources import find_source
    from ..study.running import ModelUnavailable, run_study
    from ..study.store import Store

    if len(models) == 1 and runs.ray is None:  # workers may see models that this process does not
        find_source(models[0], loading.revision)
    n_failed, passed_over = 0, []
    with Store.open(store, write=True) as opened:
        for name in models:
            with closing(runs.runner(ModelOptions(name, loading))) as runner:
                try:
                    for study in names:
                        with _progress(f"{study} on {name}") as show:
                            end = run_study(opened, runner, study, size, retry_failed=retry_failed, progress=show)
                        say(f"{study} on {name}: {end.done} of {end.cells} cells done, {end.failed} failed", flush=True)
                        n_failed += end.failed
                except ModelUnavailable as error:
                    if len(models) == 1:
                        raise
                    note(f"{name} is passed over: {error}")
                    passed_over.append(name)
    return _exit_code(models, passed_over, n_failed)


def _exit_code(models: list[str], passed_over: list[str], n_failed: int) -> int:
    if len(passed_over) == len(models):
        raise InputError(f"none of the models can be used: {', '.join(models)}")
    return SOME_FAILED if n_failed or passed_over else DONE


for _name, _line in {**STUDIES, "all": "All studies, one after another."}.items():
    add_command(study_app, _name, STUDIES_PANEL, text=f"{_line}\n\n{_RESUMES}\n\n{_EXIT_CODES}")(run_command)


@add_command(study_app, "status", STORE_PANEL)
def status_command(store: StoreFile) -> int:
    """Count the cells of each study: done, failed, left."""
    from ..study.store import Store

    with Store.open(store) as opened:
        counts = opened.counts()
    say(f"{'study':14}{'model':28}{'scale':10}{'done':>6}{'failed':>8}{'left':>6}")
    for row in counts:
        numbers = f"{row['done']:>6}{row['failed']:>8}{row['planned']:>6}"
        say(f"{row['study']:14}{row['model']:28}{row['scale']:10}{numbers}")
    return DONE


@add_command(study_app, "export", STORE_PANEL)
def export_command(
    store: StoreFile,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file.")] = None,
    study: Annotated[str | None, typer.Option(help="One study only.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> int:
    """Write all rows to a CSV or Parquet file.

    Rows are finished and failed cells, and their first column is the key. Loads no model.
    """
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
    say(f"{len(rows)} rows")
    return DONE


@add_command(study_app, "merge", STORE_PANEL)
def merge_command(
    sources: Annotated[list[Path], typer.Argument(help="Stores to copy from; they stay as they are.")],
    store: StoreFile,
) -> int:
    """Copy finished cells of other stores into one."""
    from ..study.store import Store

    for path in sources:  # refused before anything is made
        Store.open(path).close()
    with Store.open(store, write=True) as opened:
        for path in sources:
            if path.exists() and store.exists() and path.samefile(store):
                raise InputError(f"{path}: a store cannot be merged into itself")
            with Store.open(path) as source:
                say(f"{opened.merge(source)} cells from {path}")
    return DONE


def _dry_run(names: list[str], scale: Scale, models: list[str], revision: str | None) -> int:
    from ..study import study_module
    from ..study.estimates import duration, size_of, table

    passed_over = []
    for model in models:
        try:
            size = size_of(model, revision)
        except InputError as error:
            if len(models) == 1:
                raise
            note(f"{model} is passed over: {error}")
            passed_over.append(model)
            continue
        for name in names:
            lines, total = table(study_module(name).lay_out(scale.name), size, scale.name)
            say("\n".join(lines))
            say(f"{name} on {model}: at most {duration(total.seconds)}, {total.gigabytes:.1f} GB\n")
    return _exit_code(models, passed_over, 0)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[StudyProgress], None]]:
    """The progress of a study: one line for every batch that is written."""
    began, first = time.monotonic(), -1
    with progress_line(seconds=0) as line:

        def show(p: StudyProgress) -> None:
            nonlocal first
            n_ended = p.done + p.failed
            if first < 0:
                first = n_ended
            seconds = time.monotonic() - began
            left = f", about {seconds / (n_ended - first) * (p.cells - n_ended):.0f} s left" if n_ended > first else ""
            line(f"{label}: {n_ended} of {p.cells} cells{left}  {p.label}".rstrip())

        yield show
