"""What the tests of exports share: a tiny run, exported in every format that needs no compiler."""

import shutil

import pytest

from fewstep.pipeline.export import speed
from fewstep.pipeline.stages.export import export


def copied(tiny_run, place, formats):
    """A copy of the tiny run in `place`, exported in some formats."""
    run = place / "digits"
    shutil.copytree(tiny_run, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.02)
        export(run, formats, (1, 2))
    return run


@pytest.fixture(scope="session")
def exported(tiny_run, tmp_path_factory):
    """The folder of a tiny run with its export/, to be read."""
    formats = ("onnx", "onnx-fp16", "onnx-int8", "pt2", "safetensors")
    return copied(tiny_run, tmp_path_factory.mktemp("exported"), formats)


@pytest.fixture(scope="session")
def with_graphs(tiny_run, tmp_path_factory):
    """The folder of a tiny run with the graphs of a page alone, to be read."""
    return copied(tiny_run, tmp_path_factory.mktemp("graphs"), ("onnx",))


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    """A copy of the tiny run without an export, to change."""
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    shutil.copytree(tiny_run, tmp_path / "digits")
    return tmp_path / "digits"
