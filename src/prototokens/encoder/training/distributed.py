"""The processes that train one encoder together: this one alone, or those of a launcher."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from ...errors import InputError

LAUNCHER_COUNTS = (
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "PMIX_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
)
"""Where launchers other than torchrun and accelerate say how many processes they started."""

_TORCH_NAMES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """This process alone.

    Attributes:
        rank: number of this process, from 0; process 0 writes files.
        count: how many there are. Each takes every `count`-th text of a batch.
        device: where this process computes, if the launcher decides it.
    """

    rank = 0
    count = 1
    device: str | None = None

    def data_parallel(self, network: nn.Module) -> Any:
        """The network with its gradients averaged over processes."""
        return network

    def without_averaging(self, network: Any) -> AbstractContextManager[Any]:
        """A context in which gradients add up in each process and are not averaged over processes."""
        return nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, the same in all of them."""
        return values


class AcceleratedProcesses(Processes):
    """The processes of `accelerate launch` or torchrun, one for each device.

    Raises:
        InputError: accelerate is not installed, or it does not see all processes of the launcher.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError:
            raise InputError("several processes need accelerate: pip install 'prototokens[train]'") from None
        self._accelerator: Any = Accelerator()
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device = str(self._accelerator.device)
        if self.count != _number("WORLD_SIZE", 1):
            raise InputError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and accelerate sees {self.count}: {_REMEDY}")

    def data_parallel(self, network: nn.Module) -> Any:
        """See `Processes`."""
        return self._accelerator.prepare_model(network)

    def without_averaging(self, network: Any) -> AbstractContextManager[Any]:
        """See `Processes`."""
        return self._accelerator.no_sync(network)

    def mean(self, values: Tensor) -> Tensor:
        """See `Processes`."""
        return self._accelerator.reduce(values.to(self._accelerator.device), reduction="mean").to(values.device)


_REMEDY = "start the processes with accelerate launch or torchrun, or train in one process without these variables"


def running_processes() -> Processes:
    """The processes of `accelerate launch` or torchrun, by their environment variables, or this one alone.

    Processes that do not know of each other would each train the whole encoder.

    Raises:
        InputError: the variables of launchers disagree, or as in `AcceleratedProcesses`.
    """
    count, rank = _number("WORLD_SIZE", 1), _number("RANK", 0, low=0)
    if rank >= count:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {os.environ.get('WORLD_SIZE', 'not set')}: {_REMEDY}")
    # Under srun or mpirun, one torchrun for each machine starts LOCAL_WORLD_SIZE processes there.
    agents = max(1, count // _number("LOCAL_WORLD_SIZE", count))
    for name in LAUNCHER_COUNTS:
        started = _number(name, 1)
        if started not in (1, count, agents) or started > 1 == count:
            world = os.environ.get("WORLD_SIZE", "not set")
            raise InputError(f"{name} is {started} and WORLD_SIZE {world}: {_REMEDY}")
    if count == 1:
        return Processes()
    missing = [name for name in _TORCH_NAMES if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE is {count} and {missing[0]} is not set: {_REMEDY}")
    return AcceleratedProcesses()


def _number(name: str, default: int, low: int = 1) -> int:
    """An environment variable that counts processes."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < low:
        raise InputError(f"{name} is {text!r}; it must be a number of at least {low}, or not set")
    return int(text)
