"""What tests share: a training of twelve steps, an exported generator, an EDM teacher."""

import pytest
import torch
from exported_programs import Generator, exported

from fewstep.pipeline.stages.manifest import make_stage
from fewstep.teachers.interfaces import Space
from fewstep.teachers.load import save_teacher
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM
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


@pytest.fixture
def edm_folder(tiny_unet, tmp_path):
    """A teacher's folder without model_index.json: EDM scaling in fewstep.json, random weights, 1x8x8 images."""
    space = Space(shape=(1, 8, 8), sigma_min=0.002, sigma_max=80.0)
    save_teacher(Preconditioned(tiny_unet(seed=3), EDM(sigma_data=0.5), space), None, tmp_path / "edm")
    return tmp_path / "edm"
