"""What every test shares: no network, one thread per process, the device, the real data."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library of the hub is imported: a test never reaches the net
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order on any number of processors
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets and Inception weights; the test skips where it is absent."""
    folder = Path(os.environ.get("FEWSTEP_DATA", "~/.cache/fewstep-data")).expanduser()
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder} (set FEWSTEP_DATA)")
    return folder


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test: the CPU, or CUDA when FEWSTEP_TEST_DEVICE=cuda (no GPU then is a failure)."""
    name = os.environ.get("FEWSTEP_TEST_DEVICE", "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("FEWSTEP_TEST_DEVICE=cuda, and torch sees no CUDA device")
    return torch.device(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked gpu skips where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
