"""Everything that is measured on a GPU, in one command that can be cut at any time: `make gpu`.

In turn: what must hold (laws); what steps, decodes and greedy generation cost, plain, compiled and with CUDA graphs;
the seconds of fits (the paper's Table 4); the largest throughput (figure 4); and, where an encoder's folder is named,
its training. Every result is one line of a file, written as soon as it is known. The same command skips what is there
for the same device, versions and settings, and goes on. Each part runs in a process of its own and has a share of the
time, so that a part that hangs or dies costs the others nothing.

It needs torch, transformers, safetensors and typer. A .gguf file, such as the built-in model's, needs gguf and
accelerate too, until it is converted once.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where `gpu` and the other benchmarks lie

PARTS = {
    "laws": 0.20, "plain": 0.42, "compiled": 0.52, "graphs": 0.58, "table-4": 0.80, "best-batch": 0.88,
    "compiled-graphs": 1.0, "encoder": 1.0,
}  # fmt: skip
"""The parts in their order, each with the share of the budget at which it ends. A part that is done early leaves time
to all that follow."""

_ENCODER_SHARE = 0.15
_GRACE = 5.0  # seconds after which a part that does not end by itself is ended


def main() -> None:
    options = _options()
    if options.part is not None:
        _run_part(options)
        return
    import torch

    from gpu.cells import FAILED
    from kept_rows import load_rows

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "torch finds no CUDA GPU here. Whether all runs can be seen without: --device cpu --quick --model tiny"
        )

    if options.retry:  # what fails from here on is not tried a third time
        options.n_retried = len(load_rows(options.output))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.open("a").close()
    except OSError as error:
        sys.exit(f"error: rows cannot be written to {options.output} ({error.strerror})")
    began, unfinished = time.time(), []
    budget = options.budget * (1 - _ENCODER_SHARE if options.encoder_folder else 1)
    parts = [part for part in PARTS if part in options.parts.split(",")]
    if options.encoder_folder is None:
        parts = [part for part in parts if part != "encoder"]
    for part in parts:
        until = began + (options.budget if part == "encoder" else budget * PARTS[part])
        if not _part_in_a_process(options, part, until):
            unfinished.append(part)
    print(f"{time.time() - began:.0f} s; rows in {options.output}")
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}. The same command resumes.")
    print(f"As tables: {sys.executable} {Path(__file__).with_name('table.py')} {options.output}")
    if options.strict and (unfinished or load_rows(options.output, state=FAILED)):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--model", default="smollm2-135m", help="a name, folder or .gguf file; `tiny`: a random one")
    parser.add_argument("--budget", type=float, default=570, help="seconds for all")
    parser.add_argument("--quick", action="store_true", help="few small shapes and steps: does it all run?")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--retry", action="store_true", help="measure again what failed")
    parser.add_argument("--strict", action="store_true", help="end with status 1 if anything failed or is unfinished")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/gpu.jsonl"), help="file of the rows")
    parser.add_argument("--encoder-folder", type=Path, help="folder of an encoder whose training is resumed")
    parser.add_argument("--encoder-options", default="", help="the options that its training was begun with")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--n-retried", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {min(unknown)!r}; choose from: {' '.join(PARTS)}")
    return options


def _part_in_a_process(options: argparse.Namespace, part: str, until: float) -> bool:
    """Run a part in a new process until it is done or its time is over; says whether it is done.

    A process that dies leaves its cell behind as failed, and another goes on with the next one.
    """
    from gpu.cells import BROKEN_DEVICE, begun_file, keep_death

    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--until", str(until)]
    command += ["--n-retried", str(options.n_retried)]
    while time.time() < until:
        begun_file(options.output).unlink(missing_ok=True)
        process = subprocess.Popen(command)
        try:
            status = process.wait(max(0.0, until - time.time()) + _GRACE)
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()  # also where this process is ended
            process.wait()
        if status == MISTAKE:  # in every part alike
            sys.exit(MISTAKE)
        if status in (0, UNFINISHED):
            return status == 0
        if status != BROKEN_DEVICE and not keep_death(options.output, status):
            print(f"{part}: ended with status {status} before it measured anything", flush=True)
            return False
    return False


MISTAKE, UNFINISHED = 2, 4
"""The status of a part that cannot begin, say without a model, and of one whose time was over before its end."""


def _run_part(options: argparse.Namespace) -> None:
    from gpu import fits, laws, speed, training
    from gpu.cells import Kept
    from gpu.subjects import TINY, code_hash, identity, loader, precision
    from prototokens import InputError

    load, device, quick = loader(options.model), options.device, options.quick
    about = {"code": code_hash(), "precision": precision()}
    try:
        kept = Kept(options.output, identity(load(device, "float32"), device), n_retried=options.n_retried, about=about)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    cells = {
        "laws": lambda: laws.cells(load, device, tiny=options.model == TINY, quick=quick),
        **{way: lambda way=way: speed.cells(load, device, way, quick=quick) for way in speed.WAYS},
        "table-4": lambda: fits.cells(load, device, quick=quick),
        "best-batch": lambda: speed.best_batch_cells(load, device, quick=quick),
        "encoder": lambda: training.cells(
            options.encoder_folder, options.encoder_options, options.model, device, options.until
        ),
    }
    if not kept.measure(cells[options.part](), options.until):
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command resumes")
