"""The processes that train an encoder together: those of known launchers, and no others."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from encoders import prose_file, short_training, train
from prototokens import FrozenLM, InputError
from prototokens.encoder.training.distributed import LAUNCHER_COUNTS, AcceleratedProcesses, Processes, running_processes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prose_file(tmp_path_factory.mktemp("prose"))


NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *LAUNCHER_COUNTS)
TORCHRUN = {"RANK": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "here", "MASTER_PORT": 1}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Set the environment variables of a launcher, and no others."""
    monkeypatch.setattr("prototokens.encoder.training.distributed.AcceleratedProcesses", lambda: "accelerated")

    def launch(**variables: object) -> object:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return running_processes()

    return launch


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": 2}, "SLURM_NTASKS is 2 and WORLD_SIZE not set: start the processes with accelerate"),
        ({"OMPI_COMM_WORLD_SIZE": 4}, "OMPI_COMM_WORLD_SIZE is 4 and WORLD_SIZE not set"),
        ({"PMI_SIZE": 2, "WORLD_SIZE": 1}, "PMI_SIZE is 2 and WORLD_SIZE 1"),
        ({"RANK": 1}, "RANK is 1 and WORLD_SIZE not set"),
        ({"RANK": 2, "WORLD_SIZE": 2}, "RANK is 2 and WORLD_SIZE 2"),
        ({"WORLD_SIZE": 2}, "WORLD_SIZE is 2 and RANK is not set"),
        ({"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}, "WORLD_SIZE is 2 and MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'; it must be a number of at least 1, or not set"),
        ({"WORLD_SIZE": 0}, "WORLD_SIZE is '0'; it must be a number of at least 1"),
        # Two torchruns that do not know of each other, one for each task:
        ({**TORCHRUN, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4, "SLURM_NTASKS": 2}, "SLURM_NTASKS is 2 and WORLD_SIZE 4"),
    ],
)
def test_processes_that_do_not_know_of_each_other_are_refused(launched, variables: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        launched(**variables)


def test_the_processes_of_known_launchers_train_together(launched) -> None:
    for variables in ({}, {"WORLD_SIZE": 1, "RANK": 0}, {"SLURM_NTASKS": 1, "OMPI_COMM_WORLD_SIZE": 1}):
        assert type(launched(**variables)) is Processes
    for variables in (
        {"WORLD_SIZE": 2},
        {"WORLD_SIZE": 2, "SLURM_NTASKS": 1},  # one torchrun
        {"WORLD_SIZE": 2, "SLURM_NTASKS": 2},  # srun starts the processes themselves
        {"WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4, "SLURM_NTASKS": 2},  # one torchrun for each of two machines
    ):
        assert launched(**TORCHRUN, **variables) == "accelerated"


def test_accelerate_must_see_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(process_index=0, num_processes=1, device="cpu")
    monkeypatch.setitem(sys.modules, "accelerate", SimpleNamespace(Accelerator=lambda: alone))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, and accelerate sees 1: start the processes with"):
        AcceleratedProcesses()


def test_a_training_asks_for_its_processes(llama: FrozenLM, source: str, launched, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SLURM_NTASKS is 2"):
        launched(SLURM_NTASKS=2)
    with pytest.raises(InputError, match="SLURM_NTASKS is 2"):
        train(llama, tmp_path / "none", short_training(source))
    assert not (tmp_path / "none").exists()


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = running_processes()
    assert type(alone) is Processes
    assert (alone.rank, alone.count, alone.device) == (0, 1, None)
    assert torch.equal(alone.mean(torch.tensor(3.0)), torch.tensor(3.0))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match="several processes need accelerate"):
        AcceleratedProcesses()
