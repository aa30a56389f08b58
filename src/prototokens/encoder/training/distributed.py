"""One process, or many that train one encoder together: what differs between them, and no more."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from ...errors import InputError


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

    def joined(self, network: nn.Module) -> Any:
        """The network with its gradients averaged over processes."""
        return network

    def apart(self, network: Any) -> AbstractContextManager[Any]:
        """While this lasts, gradients are summed here and not yet averaged over processes."""
        return nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, the same in all of them."""
        return values


class AcceleratedProcesses(Processes):
    """Processes that `accelerate launch` (or torchrun) started, one for each device.

    Raises:
        InputError: accelerate is not installed.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError:
            raise InputError("several processes need accelerate: pip install 'prototokens[train]'") from None
        self._accelerator: Any = Accelerator()
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device = str(self._accelerator.device)

    def joined(self, network: nn.Module) -> Any:
        """See `Processes`."""
        return self._accelerator.prepare_model(network)

    def apart(self, network: Any) -> AbstractContextManager[Any]:
        """See `Processes`."""
        return self._accelerator.no_sync(network)

    def mean(self, values: Tensor) -> Tensor:
        """See `Processes`."""
        return self._accelerator.reduce(values.to(self._accelerator.device), reduction="mean").to(values.device)


def running_processes() -> Processes:
    """Those that a launcher started, told by its environment variable WORLD_SIZE, or this one alone."""
    return AcceleratedProcesses() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Processes()
