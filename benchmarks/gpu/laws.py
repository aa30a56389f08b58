"""What must hold on a GPU: losses, files, no waiting in the loop, memory. Each law returns what it measured.

The same laws run on the CPU in the tests, where the device and what it is compared with are both the CPU.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu.cells import Cell, Result
from gpu.subjects import Load, random_ids, texts
from prototokens import AdamW, FitConfig, FrozenLM, Stop, decode, fit_batch, load, preset, save
from prototokens.arrangements import arrangement_named
from prototokens.fitting.descent import Descent
from prototokens.fitting.fit import descend
from prototokens.fitting.memory import Passes, estimate_bytes

TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""How far the losses of the first steps may lie from the CPU's in float32, as a share."""

MEMORY_TOLERANCE = 0.2
"""How far the measured memory of a pass may lie from its estimate, as a share of the estimate."""

SMOOTH = preset(
    start="text-e", optimiser=AdamW(lr=0.05, eps=0.1, relative=True), axes_optimiser=None,
    stop=Stop(max_steps=4, margin=float("inf")),
)  # fmt: skip
"""A large eps makes Adam's step a smooth function of the gradient, so that rounding stays small."""


def cells(load: Load, device: str, *, tiny: bool, quick: bool) -> Iterator[Cell]:
    """All laws in all dtypes, as cells."""
    length, shapes = (4, ((3, 24),)) if tiny else (8, ((4, 64), (16, 256)))
    for dtype in ("float32", "bfloat16", "float16"):
        yield _cell("first losses", dtype, lambda dtype=dtype: first_losses(load, device, dtype, 2 * length))
        yield _cell("files travel", dtype, lambda dtype=dtype: files_travel(load, device, dtype, length))
        yield _cell("no waiting", dtype, lambda dtype=dtype: no_waiting(load(device, dtype), 2 * length))
        for n_texts, n_tokens in shapes[: 1 if quick else None]:
            yield _cell(
                "memory", dtype,
                lambda dtype=dtype, n_texts=n_texts, n_tokens=n_tokens: memory(load(device, dtype), n_tokens, n_texts),
                texts=n_texts, tokens=n_tokens,
            )  # fmt: skip


def _cell(law: str, dtype: str, run: Any, **settings: Any) -> Cell:
    return Cell({"part": "laws", "law": law, "dtype": dtype, **settings}, run)


def first_losses(load: Load, device: str, dtype: str, length: int, n_texts: int = 3) -> Result:
    """The loss of the first steps of several texts is the CPU's in float32, within `TOLERANCES`."""
    on_cpu, on_device = load("cpu", "float32"), load(device, dtype)
    target_ids = texts(on_cpu, length, n_texts)
    # In parts on one side, so that on the CPU too the two are rounded unlike each other.
    expected, seen = (
        torch.stack([one.loss_history for one in descend(lm, target_ids, SMOOTH, passes=passes).results])
        for lm, passes in ((on_cpu, Passes(1, False)), (on_device, Passes(n_texts, False)))
    )  # (B, steps + 1)
    difference = ((seen - expected).abs() / expected).amax().item()
    assert bool((expected[:, -1] < expected[:, 0]).all()), "the CPU's steps lower no loss: they show nothing"
    assert difference <= TOLERANCES[dtype], f"losses differ by {difference:.2g} of the CPU's"
    return {"texts": n_texts, "tokens": length, "difference": difference, "tolerance": TOLERANCES[dtype]}


def files_travel(load: Load, device: str, dtype: str, length: int, n_texts: int = 2) -> Result:
    """Texts that one device fitted exactly are decoded by it, and their files on the other device in the same dtype.

    In float32 every text is exact on both. In 16 bits the devices round too differently for that: a margin of half a
    logit is asked for, and three tokens of four.
    """
    margin = 0.1 if dtype == "float32" else 0.5
    config = preset(restarts=4, stop=Stop(max_steps=600, margin=margin))
    on_cpu, on_device = load("cpu", dtype), load(device, dtype)
    target_ids, result = texts(on_cpu, length, n_texts), Result()
    ways = (("from device", on_device, on_cpu), ("to device", on_cpu, on_device))
    for way, one, another in ways[: 2 if dtype == "float32" else 1]:
        files = _saved(one, target_ids, config)
        for place, lm in (("own", one), ("other", another)):
            right = torch.stack([read.ids for read in decode(lm, files)]) == target_ids
            share = right.float().mean().item()
            needed = 1.0 if dtype == "float32" or place == "own" else 0.75
            assert share >= needed, f"{way}: {share:.3f} of the tokens are right on the {place} device"
            result[f"{way}, {place}"] = share
    return {"texts": n_texts, "tokens": length, "margin": margin} | result


def _saved(lm: FrozenLM, target_ids: Tensor, config: FitConfig) -> list[Any]:
    """Proto-tokens of the texts that went through files."""
    with tempfile.TemporaryDirectory() as folder:
        results = fit_batch(lm, target_ids, config)
        paths = [save(Path(folder) / f"{row}.safetensors", one.tokens) for row, one in enumerate(results)]
        return [load(path) for path in paths]


def no_waiting(lm: FrozenLM, length: int, n_texts: int = 3) -> Result:
    """From the first evaluation on nothing waits for the device but the evaluations themselves."""
    config = replace(preset(), stop=Stop(max_steps=8, margin=float("inf"), check_every=4))
    with strict_steps(lm):
        results = descend(lm, random_ids(lm, length, n_texts), config).results
    assert [one.steps for one in results] == [8] * n_texts
    return {"texts": n_texts, "tokens": length, "steps": 8}


@contextmanager
def strict_steps(lm: FrozenLM) -> Iterator[None]:
    """In a descent, waiting for the device is an error between two evaluations of the stopping rule."""
    strict = _Strict() if lm.device.type == "cpu" else None

    def allow(is_allowed: bool) -> None:
        if strict is not None:
            strict.allows = is_allowed
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it calls itself a prototype
                torch.cuda.set_sync_debug_mode("default" if is_allowed else "error")

    def evaluation(method: Any, *, begins: bool) -> Any:
        def call(*args: Any) -> Any:
            was_strict = begins or (strict is not None and not strict.allows) or _cuda_is_strict()
            allow(True)
            try:
                return method(*args)
            finally:
                allow(not was_strict)

        return call

    # What happens at an evaluation only; before the first one, what is kept for all steps is put on the device.
    begins = {"_staying": True, "_progress": True, "_drop_to": True, "_results": False}
    former = {name: getattr(Descent, name) for name in begins}
    for name, method in former.items():
        setattr(Descent, name, evaluation(method, begins=begins[name]))
    try:
        if strict is None:
            yield
        else:
            with strict:
                yield
    finally:
        for name, method in former.items():
            setattr(Descent, name, method)
        allow(True)


def _cuda_is_strict() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_sync_debug_mode() == 2


class _Strict(TorchDispatchMode):
    """On a CPU: refuses what would wait on a GPU, which is to read a value or to have a result of unknown size."""

    WAITING = (
        "aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select",
        "aten.lift_fresh", "aten._unique2", "aten.unique_dim", "aten.bincount",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.allows = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        if not self.allows:
            by_mask = name in ("aten.index", "aten.index_put", "aten.index_put_") and any(
                isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
            )
            if name in self.WAITING or by_mask:
                raise AssertionError(f"{func} in a step would wait for a GPU")
        return func(*args, **(kwargs or {}))


def memory(lm: FrozenLM, length: int, n_texts: int) -> Result:
    """What a step's passes take at most is what `estimate_bytes` says, within `MEMORY_TOLERANCE`."""
    config = replace(preset(), stop=Stop(max_steps=2, margin=float("inf")), tokens_per_vector=None)
    target_ids = random_ids(lm, length, n_texts)
    descend(lm, target_ids[:1, :2], config)  # what is made once per model and process
    gc.collect()

    def run() -> None:
        descend(lm, target_ids, config, passes=Passes(n_texts, False))

    measured = _peak_of_gpu(lm, run) if lm.device.type == "cuda" else _peak_of_cpu(run)
    estimate = estimate_bytes(lm, arrangement_named(config.arrangement).layout(length), n_texts)
    ratio = measured / estimate
    result = {"texts": n_texts, "tokens": length, "megabytes": measured / 1e6, "measured_over_estimate": ratio}
    assert abs(ratio - 1) <= MEMORY_TOLERANCE, f"{measured / 1e6:.0f} MB are {ratio:.2f} of the estimate"
    return result


def _peak_of_gpu(lm: FrozenLM, run: Any) -> int:
    torch.cuda.synchronize(lm.device)
    torch.cuda.reset_peak_memory_stats(lm.device)
    before = torch.cuda.memory_allocated(lm.device)
    run()
    return torch.cuda.max_memory_allocated(lm.device) - before


def _peak_of_cpu(run: Any) -> int:
    with _Storages() as storages:
        run()
    return storages.peak


class _Storages(TorchDispatchMode):
    """The most bytes of tensors that were alive at a time, of those made in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in inputs:
                self._watch(leaf.untyped_storage())
        return output

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.alive:
            return
        self.alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, number: int) -> None:
        self.now -= self.alive.pop(number, 0)
