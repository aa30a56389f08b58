"""The command encode-all: a corpus into a table of vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .exits import DONE, SOME_FAILED
from .options import SHIPPED, BatchTokens, EncoderName, Json, ModelOptions, RunnerOptions, check_tokens
from .spread import add_command
from .terminal import note, print_json, progress_line, say

if TYPE_CHECKING:
    from ..runners.corpus import CorpusProgress

PANEL = "Documents and many texts"
_NAMED = 20  # blank rows
encode_all_app = typer.Typer()


@add_command(encode_all_app, "encode-all", PANEL)
def encode_all_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A .txt file with one text a line, a .jsonl, .csv or .parquet file, a folder, or a Hub data set.",
            metavar="SOURCE",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The Parquet file to write.")],
    model: ModelOptions,
    runs: RunnerOptions,
    encoder: EncoderName = None,
    column: Annotated[str, typer.Option(help="The column that holds the texts.")] = "text",
    split: Annotated[str, typer.Option(help="The split of a Hub data set.")] = "train",
    n_tokens: Annotated[
        int | None, typer.Option("--tokens", help="Keep only the first N tokens of each text.", metavar="N")
    ] = None,
    piece_tokens: Annotated[
        int | None, typer.Option(help="Cut texts into pieces of N tokens, each a row of its own.", metavar="N")
    ] = None,
    batch_tokens: BatchTokens = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the file, and drop unfinished work of another command.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Write the vectors of every text of a corpus into a Parquet file.

    One pass of an encoder a text, and one of the model to score it. Texts of one length share a pass.
    The same command resumes after an interruption, to the same file.

    Exit code 0: every text has a row, exact or not. 3: some were passed over; stderr says why. Blank rows are no texts.

    Example: prototokens encode-all sentences.jsonl -o sentences.parquet
    """
    from ..files.resume import unfinished_work
    from ..runners.corpus import CorpusConfig, encode_corpus

    runs.check()
    check_tokens(n_tokens)
    began = time.perf_counter()
    try:
        config = CorpusConfig(
            None if encoder == SHIPPED else encoder, n_tokens, piece_tokens, batch_tokens, column, split
        )
        with closing(runs.runner(model)) as runner, _progress() as show:
            done = encode_corpus(runner, source, output, config, overwrite=force, progress=show)
    except KeyboardInterrupt:
        if unfinished_work(output).exists():
            note("finished rows are kept: the same command resumes")
        raise
    failed = _tell_passed_over(source, done)
    record = _record(done, output) | {"seconds": time.perf_counter() - began}
    if as_json:
        print_json(record)
    else:
        accuracy = (
            f"{record['exact']} of {record['rows']} texts exact, {record['token_accuracy']:.1%} of the tokens right"
        )
        say(f"saved: {output}, {record['bytes']:,} bytes: {accuracy}")
    return SOME_FAILED if failed else DONE


def _tell_passed_over(source: str, done: CorpusProgress) -> int:
    """Name the rows without vectors on stderr, the blank ones in one line; the number of the others."""
    from ..runners.corpus_work import BLANK

    blank = [row for row, reason in done.passed_over if reason == BLANK]
    if blank:
        more = " ..." if len(blank) > _NAMED else ""
        numbers = " ".join(map(str, blank[:_NAMED])) + more
        note(f"{source}: {len(blank)} blank rows are left out ({numbers})")
    failed = [(row, reason) for row, reason in done.passed_over if reason != BLANK]
    for row, reason in failed:
        note(f"{source}, row {row}: passed over: {reason}")
    return len(failed)


def _record(done: CorpusProgress, output: Path) -> dict[str, Any]:
    from ..runners.vectors_table import read_metadata

    metadata = read_metadata(output)
    return {
        "file": str(output),
        "rows": done.rows,
        "exact": done.n_exact,
        "tokens": done.n_tokens,
        "token_accuracy": done.n_right / done.n_tokens,
        "vectors": done.n_vectors,
        "bytes": output.stat().st_size,
        "passed_over": [{"row": row, "reason": reason} for row, reason in done.passed_over],
        "encoder": metadata["encoder"],
        "model": metadata["model"],
    }


@contextmanager
def _progress() -> Iterator[Callable[[CorpusProgress], None]]:
    """The progress of an encoding: rows, tokens and how many are right."""
    began = time.perf_counter()
    with progress_line() as line:

        def show(p: CorpusProgress) -> None:
            accuracy = f"{p.n_right / p.n_tokens:.1%} right" if p.n_tokens else "none encoded"
            seconds = time.perf_counter() - began
            line(f"{p.rows_read} rows  {p.n_tokens} tokens  {accuracy}  {seconds:.0f} s")

        yield show
