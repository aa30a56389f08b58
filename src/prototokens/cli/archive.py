"""The commands around archives: pack, unpack, verify."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..files.atomic import file_bytes, utf8
from .terminal import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    encoder_for,
    load_encoder,
    load_model,
    load_needed,
    print_json,
    start_named,
)

if TYPE_CHECKING:
    from ..archive.archive import Archive
    from ..archive.pack import PackConfig, PackProgress
    from ..archive.unpack import Reader
    from ..lm.frozen import FrozenLM

archive_app = typer.Typer()

File = Annotated[Path, typer.Argument(help="A file that pack wrote.", metavar="ARCHIVE")]
OtherModel = Annotated[
    str | None, typer.Option("--model", help="Where the model lies, if not where the file says.", metavar="MODEL")
]
BatchTokens = Annotated[
    int | None, typer.Option(help="Tokens worked on side by side; default: from the memory at hand.", metavar="N")
]


@archive_app.command("pack")
def pack_command(
    file: Annotated[Path, typer.Argument(help="A UTF-8 text file of any length; - reads stdin.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The archive to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the archive, and drop unfinished work of another command.")
    ] = False,
    model: Model = "smollm2-135m",
    effort: Annotated[
        str, typer.Option(help="fast, balanced or thorough: what is tried before tokens are kept as they are.")
    ] = "balanced",
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a chunk; default: the longest that comes out in a trial.", metavar="N")
    ] = None,
    store: Annotated[
        str, typer.Option(help="Dtype of the vectors: int8, float16, float32, or auto: the smallest that does.")
    ] = "auto",
    margin: Annotated[
        float | None, typer.Option(help="Fit until every token leads by this many logits; default: the effort's.")
    ] = None,
    batch_tokens: BatchTokens = None,
    start: Annotated[
        str, typer.Option(help="auto, normal, vocabulary, text-e, text-m, or a file of a learned start.")
    ] = "auto",
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Begin every chunk at this encoder's vectors: a folder, a Hub id, or shipped.", metavar="PATH"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="What random draws are made from.")] = 0,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Pack a document of any length, lossless. The same command goes on where it was stopped.

    Tokens that the vectors do not give are kept beside them, so that an archive that was written is always exact.

    Example: prototokens pack book.txt -o book.proto
    """
    from ..archive.pack import PackConfig
    from ..files.atomic import check_new_file
    from ..fitting.recipes import preset

    began = time.perf_counter()
    if str(output) == "-":
        raise InputError("an archive cannot be written to stdout; name a file (a file called - is ./-)")
    text = _read(file)
    check_new_file(output, overwrite=force)
    if encoder is not None and start != "auto":
        raise InputError("give --start or --encoder, not both")
    named = load_encoder(None if encoder == "shipped" else encoder)
    config = PackConfig(
        effort=effort,
        chunk_tokens=chunk_tokens,
        store=store,
        batch_tokens=batch_tokens,
        recipe=preset(start=start_named(start), seed=seed),
        margin=margin,
    )
    lm = load_model(model, revision, dtype, device, device_map, trust_remote_code)
    if encoder is not None:
        config = replace(config, encoder=encoder_for(lm, named))
    archive = _pack(lm, text, config, output, force)
    record = _record(archive, output) | {
        "effort": effort,
        "seconds": time.perf_counter() - began,
    }
    if as_json:
        print_json(record)
    else:
        _print_packed(record)
    return 0


def _pack(lm: FrozenLM, text: str, config: PackConfig, output: Path, force: bool) -> Archive:
    """Pack with a progress line, and say what an interrupted packing keeps."""
    from ..archive.pack import pack

    try:
        with _show_packing() as show:
            return pack(lm, text, config, output=output, overwrite=force, progress=show)
    except KeyboardInterrupt:
        if output.with_name(f"{output.name}.partial").exists():
            print("what is finished is kept: the same command goes on with it", file=sys.stderr)
        raise


@archive_app.command("unpack")
def unpack_command(
    file: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the text; default: stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    model: OtherModel = None,
    batch_tokens: BatchTokens = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Write the text that was packed, byte for byte, or fail and write nothing.

    Example: prototokens unpack book.proto -o book.txt
    """
    from ..files.atomic import check_new_file, new_file

    output = None if str(output) == "-" else output
    if output is None and as_json:
        raise InputError("--json takes stdout for itself: name a file for the text (-o)")
    if output is not None:
        check_new_file(output, overwrite=force)
    reader = _reader(file, model, batch_tokens, revision, dtype, device, device_map, trust_remote_code)
    raw = reader.text().encode()
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(raw)
        return 0
    with new_file(output, overwrite=force) as temporary:
        try:
            Path(temporary).write_bytes(raw)
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror})") from None
    _tell_retries(reader)
    if as_json:
        print_json(
            {"file": str(output), "bytes": len(raw), **asdict(reader.decoding), "model": reader.lm.identity.name}
        )
    return 0


@archive_app.command("verify")
def verify_command(
    file: File,
    model: OtherModel = None,
    batch_tokens: BatchTokens = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Decode a whole archive and check every chunk and the text, writing nothing.

    Example: prototokens verify book.proto
    """
    reader = _reader(file, model, batch_tokens, revision, dtype, device, device_map, trust_remote_code)
    for _ in reader.texts():
        pass
    record = _record(reader.archive, file) | asdict(reader.decoding)
    if as_json:
        print_json(record)
        return 0
    print(f"{file}: {record['chunks']} chunks, {record['tokens']} tokens, all as they were packed")
    _tell_retries(reader)
    return 0


def _tell_retries(reader: Reader) -> None:
    alone, anew = reader.decoding.alone, reader.decoding.anew
    if alone or anew:
        print(
            f"note: {alone} chunks came right only alone in their batch, {anew} only with the weights loaded anew",
            file=sys.stderr,
        )


def _read(file: Path) -> str:
    """The text of a file or of stdin, exactly as its bytes have it."""
    if str(file) == "-":
        return utf8(sys.stdin.buffer.read(), "stdin")
    return utf8(file_bytes(file), str(file))


def _reader(
    file: Path,
    model: str | None,
    batch_tokens: int | None,
    revision: str | None,
    dtype: str,
    device: str | None,
    device_map: str | None,
    trust: bool,
) -> Reader:
    from ..archive.archive import read_archive
    from ..archive.unpack import Reader

    archive = read_archive(file)
    lm, name, revision = load_needed(archive.model, file, model, revision, dtype, device, device_map, trust)

    def anew(dtype: str) -> FrozenLM:
        return load_model(name, revision, dtype, device, device_map, trust)

    return Reader(lm, archive, batch_tokens=batch_tokens, anew=anew)


def _record(archive: Archive, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "bytes_in": archive.text_bytes,
        "bytes_out": file.stat().st_size,
        "tokens": archive.tokens,
        "literal_bytes": len(archive.literals),
        "chunks": len(archive),
        "chunk_tokens": archive.packing.get("chunk_tokens"),
        "share_from_vectors": archive.share_from_vectors,
        "residual_tokens": len(archive.residual_ids),
        "own_m": int(archive.own_m.sum()),
        "stores": archive.vectors.counts,
        "model": archive.model.name,
    }


def _print_packed(record: dict[str, Any]) -> None:
    held = record["tokens"] - record["residual_tokens"]
    times = record["bytes_out"] / max(1, record["bytes_in"])
    sizes = f"{record['bytes_out']} bytes for {record['bytes_in']} bytes of text ({times:.1f} times as many)"
    print(f"saved: {record['file']}, {sizes}")
    if record["bytes_in"]:
        print(
            f"{held} of {record['tokens']} tokens come from the vectors of {record['chunks']} chunks alone; "
            f"{record['residual_tokens']} tokens and {record['literal_bytes']} bytes are kept as they are "
            f"(share from the vectors: {record['share_from_vectors']:.1%})"
        )


@contextmanager
def _show_packing() -> Iterator[Callable[[PackProgress], None]]:
    """A line on stderr: chunks done, speed and time left; renewed in a terminal, else every ten seconds."""
    live, shown = sys.stderr.isatty(), time.monotonic()

    def show(p: PackProgress) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < (0.2 if live else 10.0):
            return
        shown = now
        left = f"{p.seconds_left:.0f} s left" if p.seconds_left < float("inf") else "time left not known yet"
        batch = f"  batch: {p.fit.texts_done} of {p.fit.texts}, step {p.fit.step}" if p.fit else ""
        line = f"{p.chunks_done} of {p.chunks} chunks  {p.tokens_per_second:.1f} tokens/s  {left}{batch}"
        print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
