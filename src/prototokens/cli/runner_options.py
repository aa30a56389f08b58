"""What commands share that run work here or on Ray: their options, and the runner made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .terminal import load_model

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM
    from ..runners.work import Runner

Ray = Annotated[str | None, typer.Option(help="Run on Ray: local, or a cluster's address.", metavar="local|ADDRESS")]
Workers = Annotated[int | None, typer.Option(help="Ray workers, each with a model; default: all that fit.")]
Gpus = Annotated[float, typer.Option(help="GPUs of each Ray worker.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: torch's. On Ray: of each worker, 1.")]

ModelOptions = tuple[str | None, str, str | None, str | None, bool]
"""Revision, dtype, device, device_map, trust_remote_code."""


class _Loader:
    """Loads a model in whichever process it is called; it can be pickled."""

    def __init__(self, name: str, options: ModelOptions) -> None:
        self.name, self.options = name, options

    def __call__(self) -> FrozenLM:
        return load_model(self.name, *self.options)


def check_runner(ray: str | None, workers: int | None, gpus: float, threads: int | None) -> None:
    """Refuse options that make no runner, before anything is written.

    Raises:
        InputError: one is out of bounds, or for Ray alone.
    """
    for option, value in (("--workers", workers), ("--threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    if ray is None and (workers is not None or gpus):
        raise InputError("--workers and --gpus are for Ray: give --ray local or --ray ADDRESS")


def make_runner(
    model: str, options: ModelOptions, ray: str | None, workers: int | None, gpus: float, threads: int | None
) -> Runner:
    """The runner that a command's options ask for; workers with GPUs put the model there unless told otherwise."""
    revision, dtype, device, device_map, trust = options
    if gpus and device is None and device_map is None:
        device = "cuda"
    load = _Loader(model, (revision, dtype, device, device_map, trust))
    if ray is None:
        import torch

        from ..runners.in_process import InProcess

        if threads is not None:
            torch.set_num_threads(threads)
        return InProcess(load)
    from ..runners.on_ray import RayRunner

    return RayRunner(load, address=None if ray == "local" else ray, workers=workers, gpus=gpus, threads=threads or 1)
