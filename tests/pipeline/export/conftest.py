"""What the tests of exports share: a tiny run, exported in every format that needs no compiler."""

import shutil

import pytest

from fewstep.pipeline.cli.main import main
from fewstep.pipeline.export import speed
from fewstep.pipeline.stages.export import export


def quick_export(run, formats, steps=(1, 2), **options):
    """An export whose speeds are those of a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.02)
        return export(run, formats, steps, **options)


def copied(tiny_run, place, formats):
    """Put a copy of the tiny run into `place`, exported in some formats."""
    run = place / "digits"
    shutil.copytree(tiny_run, run)
    quick_export(run, formats)


@pytest.fixture(scope="session")
def exported(tiny_run, once):
    """The folder of a tiny run with its export/, to be read."""
    formats = ("onnx", "onnx-fp16", "onnx-int8", "pt2", "safetensors")
    return once("exported", lambda place: copied(tiny_run, place, formats)) / "digits"


@pytest.fixture(scope="session")
def with_graphs(tiny_run, once, tmp_path_factory):
    """The folder of a tiny run with the graphs of a page alone, to be read; a page or a push locks it."""
    made = once("graphs", lambda place: copied(tiny_run, place, ("onnx",))) / "digits"
    return shutil.copytree(made, tmp_path_factory.mktemp("graphs") / "digits")


@pytest.fixture(scope="session")
def conditional(tiny, once, tmp_path_factory):
    """The folder of a class-conditional tiny run with the graphs of a page alone, to be read; a page locks it."""

    def make(out):
        samplers = '["teacher@ddim:2", "student@1"]'
        assert main(["run", *tiny(out, teacher__class_conditional="true", eval__samplers=samplers)]) == 0
        quick_export(out / "digits", ("onnx",))

    return shutil.copytree(once("conditional", make) / "digits", tmp_path_factory.mktemp("conditional") / "digits")


@pytest.fixture(scope="session")
def of_classes(conditional, once):
    """A folder with one step of a class-conditional student in every format that needs no compiler, to be read."""
    formats = ("onnx", "onnx-fp16", "onnx-int8", "pt2", "safetensors")
    return once("classes", lambda place: quick_export(conditional, formats, (1,), out=place / "export")) / "export"


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    """A copy of the tiny run without an export, to change."""
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    shutil.copytree(tiny_run, tmp_path / "digits")
    return tmp_path / "digits"
