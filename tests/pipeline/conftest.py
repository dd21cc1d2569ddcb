"""What tests share: a training of twelve steps, an exported generator."""

import pytest
import torch
from exported_programs import Generator, exported

from small_training import Denoising, Training


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Makes a Training in a new folder; without TensorBoard, whose import takes a second."""
    monkeypatch.setattr("fewstep.pipeline.training.log._has_tensorboard", lambda: False)
    return lambda name="one", **changes: Training(tmp_path / name, **changes)


@pytest.fixture
def denoising():
    """The class of the small objective."""
    return Denoising


@pytest.fixture(scope="session")
def generator():
    torch.manual_seed(0)
    return Generator().eval()


@pytest.fixture(scope="session")
def program(generator, tmp_path_factory):
    """The generator's .pt2, to be read only."""
    return exported(tmp_path_factory.mktemp("program") / "student.pt2", generator, torch.randn(2, 1, 8, 8))
