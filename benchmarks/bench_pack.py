"""Packing a speech: sizes beside gzip, zstd and xz, what it costs, and whether it is exact in every setting.

Packs in float32, then unpacks with one and two threads, in batches of one and all chunks, in float32 and in bfloat16,
and compares the bytes. With `--journal`, an interrupted packing resumes.
`--noise` measures, on the same chunks, how much the leads of the targets' logits change between those settings and
between storage dtypes: margins are chosen from that.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import lzma
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interleaved import medians, print_json
from prototokens import Encoder, FrozenLM, load_lm, read_archive
from prototokens.archive.archive import Archive, write_archive
from prototokens.archive.chunks import chunk_logits, in_batches
from prototokens.archive.pack import PackConfig, Packer, PackProgress
from prototokens.archive.settings import journal_settings
from prototokens.archive.unpack import Reader
from prototokens.files.quantised import STORES, StoredVectors
from prototokens.files.resume import Journal
from prototokens.metrics import logit_margins
from prototokens.texts.corpora import documents


def speech(lm: FrozenLM, n_tokens: int) -> str:
    """The first so many tokens of the speech of 2026, which nothing was trained on, as text."""
    return lm.decode(lm.encode(documents("recent")[0].text)[:n_tokens])


def zstd_size(raw: bytes) -> int | None:
    """Bytes in zstd at its strongest usual level, or None without a library for it."""
    installed = [name for name in ("zstandard", "compression.zstd") if find_spec(name.partition(".")[0])]
    return len(import_module(installed[0]).compress(raw, 19)) if installed else None


def sizes(packer: Packer, raw: bytes, folder: Path) -> dict[str, int | None]:
    """Bytes of the text, of what compressors make of it, and of the archive in every storage dtype."""
    n_bytes: dict[str, int | None] = {"raw": len(raw), "gzip": len(gzip.compress(raw, 9)), "zstd": zstd_size(raw)}
    n_bytes["xz"] = len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    for store in ("auto", *STORES):
        n_bytes[f"archive, {store}"] = write_archive(folder / store, packer.archive(store)).stat().st_size
    return n_bytes


def settings(lm: FrozenLM, low: FrozenLM, archive: Archive, text: str, threads: list[int]) -> list[dict[str, Any]]:
    """Unpack in every setting, and say what each needed."""
    rows = []
    every = {"1": 1, "all": archive.n_tokens}
    for model, count, (name, batch_tokens) in itertools.product((lm, low), threads, every.items()):
        torch.set_num_threads(count)
        reader = Reader(model, archive, batch_tokens=batch_tokens, anew=lambda _: lm)
        rows.append(
            {
                "dtype": str(model.dtype).removeprefix("torch."),
                "threads": count,
                "batch": name,
                "same_bytes": reader.text() == text,
                "seconds": reader.decoding.seconds,
                "alone": reader.decoding.alone,
                "anew": reader.decoding.anew,
            }
        )
        print("{dtype}, {threads} threads, batch {batch}: same bytes: {same_bytes}, {seconds:.1f} s, "
              "{alone} chunks alone, {anew} with the weights anew".format(**rows[-1]), flush=True)  # fmt: skip
    return rows


def leads(lm: FrozenLM, archive: Archive, targets: list[Tensor], batch_tokens: int) -> Tensor:
    """Lead of every target's logit over the next best, over all tokens, (N,)."""
    lead_of: dict[int, Tensor] = {}
    for batch in in_batches([len(ids) for ids in targets], batch_tokens):
        e, m = archive.chunk_vectors(torch.tensor(batch))
        wanted = torch.stack([targets[n] for n in batch])
        logits = chunk_logits(lm, archive.arrangement, wanted.shape[1], e, m, archive.fixed)
        lead_of |= dict(zip(batch, logit_margins(logits, wanted), strict=True))
    return torch.cat([lead_of[n] for n in range(len(targets))])


def noise(lm: FrozenLM, low: FrozenLM, archive: Archive, threads: list[int]) -> dict[str, dict[str, float]]:
    """How much leads change from float32, one thread, all chunks in one batch: the mean and the most, in logits."""
    ids = Reader(lm, archive).ids(range(len(archive)))
    targets, everything = [ids[n] for n in range(len(archive))], archive.n_tokens
    torch.set_num_threads(threads[0])
    reference = leads(lm, archive, targets, everything)
    held = reference > 0
    vectors = archive.vectors.take(torch.arange(len(archive.vectors)))
    cases: dict[str, tuple[FrozenLM, Archive, int, int]] = {
        "batch 1": (lm, archive, 1, threads[0]),
        f"{threads[-1]} threads": (lm, archive, everything, threads[-1]),
        "bfloat16": (low, archive, everything, threads[0]),
    }
    for store in STORES[:2]:
        stored = StoredVectors.of(vectors, [store] * len(vectors))
        cases[store] = (lm, replace(archive, vectors=stored), everything, threads[0])
    changes = {}
    for name, (model, one, batch_tokens, count) in cases.items():
        torch.set_num_threads(count)
        now = leads(model, one, targets, batch_tokens)
        change = (now - reference).abs()[held]
        lost = int((now <= 0)[held].sum())
        changes[name] = {"mean": change.mean().item(), "most": change.max().item(), "tokens_lost": lost}
        print("leads in {}: change {mean:.4f} on average, {most:.4f} at most, {tokens_lost} lost".format(
            name, **changes[name]), flush=True)  # fmt: skip
    return changes


def show(p: PackProgress) -> None:
    if p.fit is None or p.fit.step % 20 == 0:
        print(f"  {p.chunks_done} of {p.chunks} chunks, {p.seconds:.0f} s", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--chunk-tokens", type=int)
    parser.add_argument("--tokens-per-vector", type=int)
    parser.add_argument("--encoder", help="folder or Hub id: chunks begin at its vectors, or are these with instant")
    parser.add_argument("--journal", type=Path, help="keep finished chunks in JOURNAL.partial, and begin with them")
    parser.add_argument("--threads", default="1,2", help="the first is packed with")
    parser.add_argument("--noise", action="store_true", help="measure how much leads change between settings")
    parser.add_argument("--quick", action="store_true", help="64 tokens, fast, in chunks of 32")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.effort, options.chunk_tokens = 64, "fast", 32
    return options


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    began = time.perf_counter()
    returned = run()
    return returned, time.perf_counter() - began


def main() -> None:
    options = arguments()
    threads = [int(x) for x in options.threads.split(",")]
    torch.set_num_threads(threads[0])
    lm, low = load_lm(options.model, dtype="float32"), load_lm(options.model, dtype="bfloat16")
    text = speech(lm, options.tokens)
    raw = text.encode()
    encoder = Encoder.from_pretrained(options.encoder) if options.encoder else None
    config = PackConfig(options.effort, options.chunk_tokens, options.tokens_per_vector, encoder=encoder)
    kept = Journal(options.journal, journal_settings(lm, raw, config.settled(lm))) if options.journal else None
    with kept or nullcontext():
        packer, begun = timed(lambda: Packer(lm, text, config, kept, progress=show))
        archive, pack_seconds = timed(packer.archive)
    pack_seconds += begun
    _, zstd_seconds = timed(lambda: zstd_size(raw))
    with tempfile.TemporaryDirectory() as folder:
        table = sizes(packer, raw, Path(folder))
        archive = read_archive(Path(folder) / "auto")
    for name, count in table.items():
        print(
            f"{name:20}"
            + ("not installed" if count is None else f"{count:9} bytes {count / len(text):8.3f} a character")
        )
    rows = settings(lm, low, archive, text, threads)
    torch.set_num_threads(threads[0])
    # One document is generated token by token: batches do not help it. Both sides run with the same threads.
    prompt = lm.fixed_vector("bos").reshape(1, 1, -1)
    runs = {"unpack": lambda: Reader(lm, archive).text(), "greedy": lambda: lm.generate(prompt, archive.n_tokens)}
    seconds = medians(runs, 1 if options.quick or options.tokens > 500 else 5)
    saved = seconds["greedy"] - seconds["unpack"]
    result = {
        "tokens": archive.n_tokens,
        "characters": len(text),
        "chunks": len(archive),
        "chunk_tokens": archive.packing["chunk_tokens"],
        "effort": options.effort,
        "tokens_per_vector": archive.packing["tokens_per_vector"],
        "vectors": len(archive.vectors),
        "positions_per_token": sum(packer.positions()) / max(1, archive.n_tokens),
        "own_m": int(archive.own_m.sum()),
        "stores": archive.vectors.counts,
        "share_from_vectors": archive.share_from_vectors,
        "start": archive.packing["start"],
        "pack_seconds": pack_seconds,
        "zstd_seconds": zstd_seconds,
        "unpack_seconds": seconds["unpack"],
        "greedy_seconds": seconds["greedy"],
        "decodes_to_pay_off": pack_seconds / saved if saved > 0 else None,
        "sizes": table,
        "settings": rows,
        "noise": noise(lm, low, packer.archive("float32"), threads) if options.noise else None,
    }
    print(
        f"{result['share_from_vectors']:.1%} of {archive.n_tokens} tokens "
        f"from the {len(archive.vectors)} vectors of {len(archive)} chunks alone; "
        f"{result['positions_per_token']:.1f} positions a token, forward and backward"
    )
    print(f"pack {pack_seconds:.1f} s, zstd {zstd_seconds:.2f} s; "
          f"unpack {seconds['unpack']:.2f} s, greedy {seconds['greedy']:.2f} s; "
          f"decodes until packing pays off: {json.dumps(result['decodes_to_pay_off'])}")  # fmt: skip
    assert all(row["same_bytes"] for row in rows)
    print_json([result])


if __name__ == "__main__":
    main()
