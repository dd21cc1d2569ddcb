"""What the tests of training share: a job of twelve steps."""

import pytest

from small_training import Denoising, Training


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Makes a Training in a new folder; without TensorBoard, whose import takes a second."""
    monkeypatch.setattr("fewstep.pipeline.log._has_tensorboard", lambda: False)
    return lambda name="one", **changes: Training(tmp_path / name, **changes)


@pytest.fixture
def denoising():
    """The class of the small objective."""
    return Denoising
