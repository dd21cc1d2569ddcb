"""What tests share: a training of twelve steps, an exported generator."""

import pytest
import torch
from exported_programs import Generator, exported

from fewstep.pipeline.stages.manifest import make_stage
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
    """The generator's .pt2 in a stage's folder, whose manifest names it; to be read only."""
    folder = tmp_path_factory.mktemp("program") / "export"

    def build(stage):
        exported(stage / "student.pt2", generator, torch.randn(2, 1, 8, 8))

    make_stage(folder, "export", {}, {}, build)
    return folder / "student.pt2"
