"""What all tests share: no network, one thread, and models that nothing may change."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers would wait for whatever else a busy machine runs

import pytest
import torch

from families import FAMILIES, analytic, family
from prototokens import FrozenLM

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(scope="session", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    """One tiny model of every family, in turn."""
    return family(request.param)


@pytest.fixture(scope="session")
def llama() -> FrozenLM:
    """One family, where any will do."""
    return family("llama")


@pytest.fixture(scope="session")
def known() -> FrozenLM:
    """The analytic model: an embedding row is read as its own id, wherever it stands."""
    return analytic()
