"""Exported files: they make the images of stock diffusers, say what they are, and are not left where they do not."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DiffusionPipeline

import fewstep
from fewstep.errors import UserError
from fewstep.eval.images import Generated
from fewstep.eval.noise import KeyedNoise
from fewstep.files import sha256_file
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.export import parity, speed
from fewstep.pipeline.export.provenance import provenance_of
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.pipeline.stages import export as stage
from fewstep.pipeline.stages.export import export
from fewstep.pipeline.stages.manifest import model_hash
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.graph import Generator

GRAPHS = [
    f"student-{steps}step{suffix}" for steps in (1, 2) for suffix in (".onnx", "-fp16.onnx", "-int8.onnx", ".pt2")
]


def found(run):
    """parity.json by file."""
    return {each["file"]: each for each in json.loads((run / "export" / "parity.json").read_text())["files"]}


def images_of(path, noise):
    """What a graph makes of keyed noise, in a session of its own."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {each.name: noise.draw().numpy() for each in session.get_inputs()})[0])


def test_each_file_that_is_offered_is_there_and_named_in_the_manifest(exported):
    files = {path.name: sha256_file(path) for path in (exported / "export").iterdir() if path.is_file()}
    outputs = json.loads((exported / "export" / "manifest.json").read_text())["outputs"]
    assert {name: each["sha256"] for name, each in outputs.items() if "/" not in name} == {
        name: digest for name, digest in files.items() if name != "manifest.json"
    }
    offered = {name for name, each in found(exported).items() if not each["fault"]}
    assert offered - {"diffusers"} == {name for name in files if "step" in name}
    assert set(found(exported)) == {*GRAPHS, "diffusers"}


def test_exact_formats_make_the_pixels_of_the_stock_pipeline(exported):
    for name, each in found(exported).items():
        assert set(each["batches"]) == {"1", "2", "5", "63", "64", "100"}
        if each["format"] in ("onnx", "pt2", "safetensors"):
            assert each["max_error"] < (1e-5 if each["steps"] == 1 else 1e-4), name
            assert each["other_pixels"] <= 3, name
            assert each["fd"] == pytest.approx(each["stock_fd"], rel=1e-3), name


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("batch", [1, 64])
def test_a_graph_alone_in_onnxruntime_is_the_stock_pipeline(exported, steps, batch):
    image = images_of(exported / f"export/student-{steps}step.onnx", KeyedNoise((1, 8, 8), 7, 0, batch))
    pipeline: Any = DiffusionPipeline.from_pretrained(exported / "students" / "student")
    pipeline.set_progress_bar_config(disable=True)
    generators = list(KeyedNoise((1, 8, 8), 7, 0, batch).generators)
    call = fewstep.load_student(exported).stock_call(steps)
    stock = pipeline(batch_size=batch, generator=generators, output_type="np", **call).images
    np.testing.assert_allclose(image.transpose(0, 2, 3, 1), stock * 2 - 1, atol=1e-5)


def test_a_conditional_student_is_exported_in_every_format(of_classes, conditional):
    files = json.loads((of_classes / "parity.json").read_text())["files"]
    assert [each["format"] for each in files] == ["onnx", "onnx-fp16", "onnx-int8", "pt2", "safetensors"]
    for each in files:
        assert each["fault"] is None
        if each["format"] in ("onnx", "pt2", "safetensors"):
            assert each["max_error"] < 1e-5, each
            assert each["fd"] == pytest.approx(each["stock_fd"], rel=1e-3)
        if each["format"] != "safetensors":
            facts = provenance_of(of_classes / each["file"])
            assert facts["inputs"] == ["noise", "labels"]
            assert (facts["num_classes"], facts["classes"]) == (10, list(map(str, range(10))))
    theirs = fewstep.sample(fewstep.load_student(conditional), 5, 1, 3, labels=[7])
    for name in ("student-1step.onnx", "student-1step.pt2"):
        sampler, _ = open_subject(str(of_classes / name), torch.device("cpu"))
        made = Generated(sampler, 3, 5, 2, labels=[7]).images(0, 5)  # type: ignore[arg-type]
        assert (made.int() - theirs.int()).abs().max() <= 1
        assert (made == theirs).double().mean() > 0.99


def test_images_of_other_labels_are_refused(conditional, tmp_path, monkeypatch, capsys):
    """The parity gate gives both sides the same labels: a graph that mixes them up is noticed."""
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, noise, labels: forward(self, noise, labels=9 - labels))
    assert main(["export", str(conditional), "--steps", "1", "-o", str(tmp_path / "export")]) == 2
    assert "of its pixels are stock diffusers'" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_half_has_half_the_bytes_and_a_small_error(exported):
    whole, half = (exported / "export" / f"student-1step{suffix}" for suffix in (".onnx", "-fp16.onnx"))
    assert half.stat().st_size < 0.65 * whole.stat().st_size
    assert 1e-6 < found(exported)[half.name]["max_error"] < 0.02


def test_files_say_what_they_were_made_from_and_inspect_needs_no_torch(exported, capsys):
    for name in [name for name in GRAPHS if (exported / "export" / name).exists()]:
        facts = provenance_of(exported / "export" / name)
        assert facts["student_hash"] == model_hash(exported / "students" / "student")
        assert facts["teacher_hash"] == model_hash(exported / "teacher")
        assert facts["steps"] == [int(name[8])]
        assert facts["inputs"] == ["noise", "noise_2"][: facts["steps"][0]]
    weights = exported / "export/diffusers/unet/diffusion_pytorch_model.safetensors"
    code = (
        "import sys; from fewstep.pipeline.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", weights, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["noise_levels"][0] == [80.0]
    assert main(["inspect", str(exported / "export" / "student-2step.onnx")]) == 0
    assert "student hash" in capsys.readouterr().out
    assert main(["inspect", str(exported / "students/student/unet/diffusion_pytorch_model.safetensors")]) == 2
    assert "fewstep did not export it" in capsys.readouterr().err


def test_a_file_names_no_path_of_this_machine(exported, root):
    for path in (exported / "export").glob("student-*"):
        parts = [path.read_bytes()]
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                parts = [archive.read(name) for name in archive.namelist()]
        for data in parts:
            assert str(root).encode() not in data
            assert b"site-packages" not in data


def test_an_exported_file_is_a_subject_of_the_benchmark(exported):
    for name in ("student-2step.onnx", "student-2step.pt2"):
        sampler, _ = open_subject(str(exported / "export" / name), torch.device("cpu"))
        assert (sampler.nfe, sampler.kind) == (2, "export")
        assert sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 3)).shape == (3, 1, 8, 8)  # type: ignore[union-attr]


def test_pixels_come_out_as_uint8_rows(run):
    export(run, ("onnx", "pt2"), (1,), pixels=True)
    theirs = fewstep.sample(fewstep.load_student(run), 5, 1, 0)
    image = images_of(run / "export/student-1step.onnx", KeyedNoise((1, 8, 8), 0, 0, 5))
    assert image.dtype == np.uint8
    assert np.array_equal(image, theirs.permute(0, 2, 3, 1).numpy())
    assert all(each["other_pixels"] <= 3 for each in found(run).values())


def test_a_graph_that_makes_other_images_leaves_nothing(run, monkeypatch, capsys):
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, noise, *later: forward(self, noise, *later) * 0.9999)
    assert main(["export", str(run), "--steps", "1"]) == 2
    assert "student-1step.onnx: 99" in capsys.readouterr().err
    assert not (run / "export").exists()


def test_a_variant_that_is_too_far_is_not_offered(run, monkeypatch, capsys):
    monkeypatch.setattr(parity, "FARTHER", 0.5)
    assert main(["export", str(run), "--formats", "onnx,onnx-int8", "--steps", "1"]) == 0
    assert "warning: student-1step-int8.onnx is not offered: its FD is" in capsys.readouterr().out
    assert (run / "export/student-1step.onnx").exists()
    assert not (run / "export/student-1step-int8.onnx").exists()
    assert found(run)["student-1step-int8.onnx"]["fault"]
    capsys.readouterr()
    assert main(["export", str(run), "--formats", "onnx,onnx-int8", "--steps", "1"]) == 0
    assert "export: up to date" in capsys.readouterr().out


def test_what_cannot_be_exported_is_one_line(run, tmp_path, capsys):
    def line(*arguments):
        assert main(["export", *map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "must be of onnx, onnx-fp16" in line(run, "--formats", "tflite")
    assert "must be of 1, 2, 4, 8" in line(run, "--steps", "3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "was not made by fewstep export" in line(run, "-o", tmp_path / "mine")
    weights = run / "students/student/unet/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "is corrupt (its sha256 changed)" in line(run)
    with pytest.raises(UserError, match="no such file"):
        export(tmp_path / "mine")
    assert not (run / "export").exists()


def test_a_folder_of_another_stage_is_not_replaced(run, capsys):
    assert main(["export", str(run), "-o", str(run / "teacher")]) == 2
    assert "was not made by fewstep export" in capsys.readouterr().err
    assert (run / "teacher" / "model_index.json").is_file()


def test_what_an_export_drops_is_named(run, capsys):
    export(run, ("onnx",), (1,))
    capsys.readouterr()
    export(run, ("safetensors",), (1,))
    assert (
        "no longer there, as they were not asked for: sample.cpp, sample.py, student-1step.onnx"
        in capsys.readouterr().out
    )


def test_images_that_are_not_finite_are_one_line(run, monkeypatch, capsys):
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, noise, *later: forward(self, noise, *later) * float("nan"))
    assert main(["export", str(run), "--steps", "1"]) == 2
    assert "student-1step.onnx: makes images that are not finite" in capsys.readouterr().err


def test_steps_that_a_student_has_not_are_one_line(run, monkeypatch):
    monkeypatch.setattr(ConsistencyModel, "most_steps", property(lambda self: 3))
    with pytest.raises(UserError, match="this student makes 1 to 3 steps"):
        export(run, ("onnx",), (1, 4))


@pytest.mark.slow
def test_compiled_code_takes_labels(conditional, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    export(conditional, ("aoti",), (2,), out=tmp_path / "export")
    (each,) = json.loads((tmp_path / "export" / "parity.json").read_text())["files"]
    assert each["max_error"] < 1e-4
    sampler, _ = open_subject(str(tmp_path / "export" / each["file"]), torch.device("cpu"))
    assert (sampler.nfe, sampler.num_classes) == (2, 10)  # type: ignore[union-attr]


@pytest.mark.slow
def test_compiled_code_makes_the_same_images(run):
    export(run, ("aoti",), (1,))
    name = "student-1step-aoti.pt2"
    assert found(run)[name]["max_error"] < 1e-5
    sampler, _ = open_subject(str(run / "export" / name), torch.device("cpu"))
    assert sampler.nfe == 1
    assert provenance_of(run / "export" / name)["student_hash"] == model_hash(run / "students" / "student")


def test_the_formats_that_the_command_names_are_all_written(monkeypatch):
    """Each has a suffix, or is the folder for the hub."""
    assert {*stage.SUFFIXES, "safetensors"} == set(stage.FORMATS)
    assert set(stage.EXACT) < set(stage.FORMATS)
    assert Path(f"x{stage.SUFFIXES['aoti']}").suffix == ".pt2"
