"""The commands around archives: pack, unpack, verify."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .exits import DONE
from .file_model import load_file_model
from .options import (
    RECIPE_PANEL,
    BatchTokens,
    ChunkEncoderName,
    FileModelOptions,
    Force,
    Json,
    ModelOptions,
    encoder_for,
    load_encoder,
    start_named,
)
from .spread import add_command
from .terminal import note, print_json, progress_line, read_document, say, say_bytes

if TYPE_CHECKING:
    from ..archive.archive import Archive
    from ..archive.pack import PackConfig, PackProgress
    from ..archive.unpack import Reader
    from ..lm.frozen import FrozenLM

PANEL = "Documents and many texts"
archive_app = typer.Typer()

File = Annotated[Path, typer.Argument(help="A file that pack wrote.", metavar="ARCHIVE")]


@dataclass(frozen=True)
class PackOptions:
    """How a document is packed."""

    effort: Annotated[
        str,
        typer.Option(
            help="instant (an encoder, no fit), fast, balanced or thorough: how long chunks are fitted.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = "balanced"
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a chunk, which one forward pass decodes; default: the effort's, 512.",
            metavar="N",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None
    tokens_per_vector: Annotated[
        int | None,
        typer.Option(
            help="An e-token for every B tokens: more for smaller archives; default: the effort's.",
            metavar="B",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None
    store: Annotated[
        str,
        typer.Option(
            help="Dtype of the vectors: int8, float16, float32, or auto: the smallest that costs few tokens.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = "auto"
    margin: Annotated[
        float | None,
        typer.Option(help="Tokens are to lead by so many logits; default: the effort's.", rich_help_panel=RECIPE_PANEL),
    ] = None
    start: Annotated[
        str,
        typer.Option(
            help="auto, normal, vocabulary, text-e, text-m, or a file of a learned start.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = "auto"
    encoder: ChunkEncoderName = None
    seed: Annotated[int, typer.Option(help="Seed of all random draws.", rich_help_panel=RECIPE_PANEL)] = 0

    def config(self, batch_tokens: int | None) -> PackConfig:
        """The settings, without the encoder, which needs the model.

        Raises:
            InputError: one of them is out of bounds, or unknown.
        """
        from ..archive.pack import PackConfig
        from ..fitting.recipes import preset

        if self.encoder is not None and self.start != "auto":
            raise InputError("give --start or --encoder, not both")
        return PackConfig(
            effort=self.effort,
            chunk_tokens=self.chunk_tokens,
            tokens_per_vector=self.tokens_per_vector,
            store=self.store,
            batch_tokens=batch_tokens,
            recipe=preset(start=start_named(self.start), seed=self.seed),
            margin=self.margin,
        )


@add_command(archive_app, "pack", PANEL)
def pack_command(
    file: Annotated[Path, typer.Argument(help="A UTF-8 text file of any length; - reads stdin.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The archive to write.")],
    model: ModelOptions,
    how: PackOptions,
    batch_tokens: BatchTokens = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the archive, and drop unfinished work of another command.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Pack a document of any length without loss.

    Tokens that the vectors do not reproduce are stored beside them, so that every archive is exact.
    The same command resumes after an interruption.

    Example: prototokens pack book.txt -o book.proto
    """
    from ..files.atomic import check_new_file

    began = time.perf_counter()
    if str(output) == "-":
        raise InputError("an archive cannot be written to stdout; name a file (a file called - is ./-)")
    text = read_document(file)
    check_new_file(output, overwrite=force)
    config = how.config(batch_tokens)
    encoder = load_encoder(how.encoder)
    lm = model.load()
    if how.encoder is not None:
        config = replace(config, encoder=encoder_for(lm, encoder))
    archive = _pack(lm, text, config, output, force)
    record = _record(archive, output) | {"effort": how.effort, "seconds": time.perf_counter() - began}
    if as_json:
        print_json(record)
    else:
        _print_packed(record)
    return DONE


def _pack(lm: FrozenLM, text: str, config: PackConfig, output: Path, force: bool) -> Archive:
    """Pack with a progress line, and say what an interrupted packing keeps."""
    from ..archive.pack import pack
    from ..files.resume import unfinished_work

    try:
        with _pack_progress() as show:
            return pack(lm, text, config, output=output, overwrite=force, progress=show)
    except KeyboardInterrupt:
        if unfinished_work(output).exists():
            note("finished parts are kept: the same command resumes")
        raise


@add_command(archive_app, "unpack", PANEL)
def unpack_command(
    file: File,
    model: FileModelOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the text; default: stdout.")
    ] = None,
    batch_tokens: BatchTokens = None,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Write the text of an archive, byte for byte.

    If anything is damaged, nothing is written.

    Example: prototokens unpack book.proto -o book.txt
    """
    from ..files.atomic import check_new_file, new_file

    output = None if str(output) == "-" else output
    if output is None and as_json:
        raise InputError("--json takes stdout for itself: name a file for the text (-o)")
    if output is not None:
        check_new_file(output, overwrite=force)
    reader = _reader(file, model, batch_tokens)
    raw = reader.text().encode()
    if output is None:
        say_bytes(raw)
        return DONE
    with new_file(output, overwrite=force) as temporary:
        try:
            Path(temporary).write_bytes(raw)
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror})") from None
    _tell_retries(reader)
    if as_json:
        print_json(
            {"file": str(output), "bytes": len(raw), **reader.decoding.to_json(), "model": reader.lm.identity.name}
        )
    return DONE


@add_command(archive_app, "verify", PANEL)
def verify_command(file: File, model: FileModelOptions, batch_tokens: BatchTokens = None, as_json: Json = False) -> int:
    """Decode an archive and check every chunk. Writes nothing.

    Example: prototokens verify book.proto
    """
    reader = _reader(file, model, batch_tokens)
    for _ in reader.texts():
        pass
    record = _record(reader.archive, file) | reader.decoding.to_json()
    if as_json:
        print_json(record)
        return DONE
    say(f"{file}: {record['chunks']} chunks, {record['tokens']} tokens, all as they were packed")
    _tell_retries(reader)
    return DONE


def _tell_retries(reader: Reader) -> None:
    n_alone, n_anew = reader.decoding.alone, reader.decoding.anew
    if n_alone or n_anew:
        note(f"note: {n_alone} chunks were exact only when decoded alone, {n_anew} only with the model loaded again")


def _reader(file: Path, model: FileModelOptions, batch_tokens: int | None) -> Reader:
    from ..archive.archive import read_archive
    from ..archive.unpack import Reader

    archive = read_archive(file)
    lm, options = load_file_model(model, archive.model, file)

    def anew(dtype: str) -> FrozenLM:
        return replace(options, loading=replace(options.loading, dtype=dtype)).load()

    return Reader(lm, archive, batch_tokens=batch_tokens, anew=anew)


def _record(archive: Archive, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "bytes_in": archive.text_bytes,
        "bytes_out": file.stat().st_size,
        "tokens": archive.n_tokens,
        "literal_bytes": len(archive.literals),
        "chunks": len(archive),
        "chunk_tokens": archive.packing.get("chunk_tokens"),
        "tokens_per_vector": archive.packing.get("tokens_per_vector"),
        "vectors": len(archive.vectors),
        "share_from_vectors": archive.share_from_vectors,
        "residual_tokens": len(archive.residual_ids),
        "own_m": int(archive.own_m.sum()),
        "stores": archive.vectors.counts,
        "model": archive.model.name,
    }


def _print_packed(record: dict[str, Any]) -> None:
    n_held = record["tokens"] - record["residual_tokens"]
    times = record["bytes_out"] / max(1, record["bytes_in"])
    sizes = f"{record['bytes_out']} bytes for {record['bytes_in']} bytes of text ({times:.1f} times as many)"
    say(f"saved: {record['file']}, {sizes}")
    if record["bytes_in"]:
        say(
            f"{n_held} of {record['tokens']} tokens come from the {record['vectors']} vectors of {record['chunks']} "
            "chunks alone; "
            f"{record['residual_tokens']} tokens and {record['literal_bytes']} bytes are kept as they are "
            f"(share from the vectors: {record['share_from_vectors']:.1%})"
        )


@contextmanager
def _pack_progress() -> Iterator[Callable[[PackProgress], None]]:
    """The progress of a packing: chunks, speed, and the time that is left."""
    with progress_line() as line:

        def show(p: PackProgress) -> None:
            left = f"{p.seconds_left:.0f} s left" if p.seconds_left < float("inf") else "time left not known yet"
            batch = f"  batch: step {p.fit.step}, {p.fit.token_accuracy:.0%} of its tokens right" if p.fit else ""
            line(f"{p.chunks_done} of {p.chunks} chunks  {p.tokens_per_second:.1f} tokens/s  {left}{batch}")

        yield show
