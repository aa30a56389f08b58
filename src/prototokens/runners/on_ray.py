"""The runner on Ray: one model per worker process, on this machine or a cluster. Results come back to this process."""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .work import Done, Work, run_unit

if TYPE_CHECKING:
    from ..lm.frozen import FrozenLM


class Worker:
    """A worker process: it loads the model with the first unit of work.

    Args:
        load: loads the model.
        threads: CPU threads of torch.
    """

    def __init__(self, load: Callable[[], FrozenLM], threads: int) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # torch reads them when it is imported
            os.environ[name] = str(threads)
        self._load, self._threads = load, threads
        self._lm: FrozenLM | None = None

    def do(self, work: Work, number: int, job: Any) -> Done:
        """Run one unit of work."""
        try:
            if self._lm is None:
                self._lm = self._load()
                if "torch" in sys.modules:  # unpickling `load` may have imported it before the variables were set
                    sys.modules["torch"].set_num_threads(self._threads)
        except Exception as error:  # a model that cannot be loaded fails every unit
            return Done.failed(number, error)
        return run_unit(work, self._lm, number, job)


class RayRunner:
    """Runs work on Ray actors. Results come as they are ready.

    If Ray runs already, it is used as it is. Otherwise it is started here, and stopped by `close`. If a worker is lost,
    another one gets its unit.

    Args:
        load: loads the model in a worker; it is pickled.
        address: of a cluster, or None for this machine.
        workers: how many, each with a model of its own; None: all that the cluster has room for.
        gpus: GPUs of each worker.
        threads: CPU threads of each worker.
        retries: how often a unit is tried again after its worker was lost.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or it has no room for a worker.
    """

    def __init__(
        self,
        load: Callable[[], FrozenLM],
        *,
        address: str | None = None,
        workers: int | None = None,
        gpus: float = 0,
        threads: int = 1,
        retries: int = 3,
    ) -> None:
        self._ray = _import_ray()
        self._started = not self._ray.is_initialized()
        if self._started:
            _connect(self._ray, address, (workers or 1) * threads)
        self._load, self._gpus, self._threads, self._retries = load, gpus, threads, retries
        self._actors: list[Any] = []
        room = self._room()
        if room < 1:
            self.close()
            raise InputError(f"Ray has no room for a worker of {threads} threads and {gpus:g} GPUs: ask for less")
        self._limit = min(room, workers or room)

    def run(self, work: Work, jobs: Sequence[Any]) -> Iterator[Done]:
        """Run the work on each input, as many at a time as there are workers."""
        waiting, losses = deque(range(len(jobs))), Counter[int]()
        idle = list(self._actors)
        running: dict[Any, tuple[Any, int]] = {}
        while waiting or running:
            while waiting and (idle or len(self._actors) < self._limit):
                actor, number = idle.pop() if idle else self._start(), waiting.popleft()
                running[actor.do.remote(work, number, jobs[number])] = (actor, number)
            ready, _ = self._ray.wait(list(running), num_returns=1)
            for reference in ready:
                actor, number = running.pop(reference)
                try:
                    done: Done = self._ray.get(reference)
                except self._ray.exceptions.RayError as error:
                    self._drop(actor)
                    losses[number] += 1
                    if losses[number] <= self._retries:
                        waiting.appendleft(number)
                        continue
                    said = " ".join(str(error).split())
                    line = f"its worker was lost {losses[number]} times (out of memory?): {said}"
                    done = Done(number, error=line[:1000], mendable=True)
                else:
                    idle.append(actor)
                yield done

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for actor in list(self._actors):
            self._drop(actor)
        if self._started:
            self._ray.shutdown()

    def _room(self) -> int:
        resources = self._ray.cluster_resources()
        room = int(resources.get("CPU", 0) // self._threads)
        return min(room, int(resources.get("GPU", 0) / self._gpus)) if self._gpus else room

    def _start(self) -> Any:
        remote = self._ray.remote(num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0)
        actor = remote(Worker).remote(self._load, self._threads)
        self._actors.append(actor)
        return actor

    def _drop(self, actor: Any) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends statistics by default
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError("this needs Ray: pip install 'prototokens[ray]'") from None


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    # There may be more workers than cores: Ray counts threads that were asked for, not cores.
    local = {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "here"
        raise InputError(f"Ray cannot be reached or started {where}: {' '.join(str(error).split())[:300]}") from None
