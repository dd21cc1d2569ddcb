"""fewstep inspect --data: numbers, pictures and refusals; a teacher whose prediction type is wrong is told so."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fewstep.pipeline.cli.main import main
from fewstep.teachers.interfaces import Space
from fewstep.teachers.load import own_model, save_teacher
from fewstep.teachers.network import build_unet
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM

# diffusers' DPM-Solver++ with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
KEYS = {"data", "images", "by_class", "denoising", "likely_prediction", "verdict", "ms_per_evaluation", "batch_size"}
KEYS |= {"device", "estimated_s", "worse"}


def found(capsys, *arguments):
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["inspect", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err.removeprefix("fewstep: error: ")


@pytest.fixture
def conditional(tmp_path):
    """The folder of an untrained conditional EDM model of ten classes and none, for 1x8x8 images."""
    shape = {"channels": (16, 16), "layers_per_block": 1, "attention": (False, False), "norm_groups": 8, "dropout": 0.0}
    unet = build_unet((1, 8, 8), **shape, seed=0, classes=11)
    save_teacher(own_model(unet, EDM(), (0.002, 80.0), null_class=True), None, tmp_path / "conditional")
    return tmp_path / "conditional"


@pytest.fixture
def pictures(tmp_path):
    """An image folder without classes: 24 colour images of 12x10."""
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        noise = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{number:02d}.png")
    return f"imagefolder:{tmp_path / 'pictures'}"


def test_numbers_and_pictures_of_a_teacher(tiny_run, tmp_path, capsys):
    teacher, out = tiny_run / "teacher", tmp_path / "out"
    plain = found(capsys, teacher)
    measured = found(capsys, teacher, "--data", "digits", "-o", out)
    assert {**measured, **plain} == measured
    assert measured.keys() - plain.keys() == KEYS | {"out", "shown_sigmas"}
    assert (measured["images"], measured["by_class"], measured["batch_size"]) == (512, False, 64)
    rows = measured["denoising"]
    assert (rows[0]["sigma"], rows[-1]["sigma"]) == (pytest.approx(plain["sigma_min"], rel=1e-3), 80.0)
    steps = np.diff(np.log([row["sigma"] for row in rows]))
    assert steps == pytest.approx(np.full(9, steps[0]))
    for row in rows:
        assert 0 < row["linear"] <= row["shrinkage"] < row["sigma"]
        assert row["against"] == "better" or row["error"] >= row["linear"]
        assert row["read_as"].keys() == {"epsilon", "sample"}
    ms, estimated = measured["ms_per_evaluation"], measured["estimated_s"]
    assert estimated == pytest.approx({"trajectories": 192 * ms, "training_100_kimg": 300 * ms})
    assert sorted(path.name for path in out.iterdir()) == ["denoised.png", "preview.png"]
    with Image.open(out / "preview.png") as preview, Image.open(out / "denoised.png") as denoised:
        assert preview.size == (35 * 22, 35 * 22)  # four by four of 8 pixels and one between, enlarged
        assert denoised.size == (71 * 10, 80 * 10)  # eight columns; the clean row and two for each of four levels
    assert measured["shown_sigmas"] == [row["sigma"] for row in rows[3:7]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    assert main(["inspect", str(teacher), "--data", "digits"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("source ")
    assert f"verdict: {measured['verdict']}" in text  # the same images and the same noise each time
    for row in rows:
        assert f"{row['sigma']:.3g}"[:4] in text
    assert "an estimate for this machine" in text


def test_a_conditional_model_is_given_the_labels_of_the_data(conditional, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    measured = found(capsys, conditional, "--data", "digits", "-o", out)
    assert measured["by_class"]
    assert [row["read_as"] for row in measured["denoising"]] == [{}] * 10
    assert measured["denoising"][-1]["linear"] == pytest.approx(0.413, abs=0.01)  # within the classes; 0.54 without
    assert (out / "preview.png").is_file()
    said = refused(capsys, conditional, "--data", pictures, "-o", tmp_path / "none")
    assert said.startswith("data.label_column: ")
    assert "has no labels, which a class-conditional model needs" in said
    assert not (tmp_path / "none").exists()


def test_labels_beyond_the_classes_of_the_model_are_refused(tmp_path, capsys):
    shape = {"channels": (16,), "layers_per_block": 1, "attention": (False,), "norm_groups": 8, "dropout": 0.0}
    unet = build_unet((1, 8, 8), **shape, seed=0, classes=5)
    save_teacher(own_model(unet, EDM(), (0.002, 80.0), null_class=False), None, tmp_path / "five")
    assert "has labels up to 9, and the model 5 classes" in refused(capsys, tmp_path / "five", "--data", "digits")


def test_images_take_the_size_and_channels_of_the_model(edm_folder, pictures, tmp_path, capsys):
    measured = found(capsys, edm_folder, "--data", pictures, "-o", tmp_path / "out")
    assert (measured["images"], measured["batch_size"]) == (12, 12)  # half, the others are the filters'
    with Image.open(tmp_path / "out" / "denoised.png") as denoised:
        assert denoised.mode == "L"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "nonsense"], "data.source: 'nonsense': must be digits, hub:ID, parquet:PATH or imagefolder:PATH"),
        (["--data", "imagefolder:absent"], "data.source: 'imagefolder:absent': no such file or folder"),
        (["--data", "digits", "--data.split", "test"], "data.split: 'test': the digits have one split, train"),
        (["--data", "digits", "-o", "no/such/out"], "--out: 'no/such/out': there is no folder no/such: make it first"),
        (["--data", "digits", "-o", "full"], "--out: 'full': exists and is not an empty folder; give a new one"),
        (["-o", "out"], "--data: is needed with --out and --data.KEY"),
        (["--data.split", "test"], "--data: is needed with --out and --data.KEY"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(edm_folder, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert refused(capsys, edm_folder, *arguments).startswith(says)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_denoiser_is_refused(tiny_run, tiny_unet, tmp_path, capsys):
    student = tiny_run / "students" / "student"
    assert "is a student, whose output at a noise level" in refused(capsys, student, "--data", "digits")
    weights = student / "unet" / "diffusion_pytorch_model.safetensors"
    assert "is for a model's folder, and" in refused(capsys, weights, "--data", "digits")
    unet = tiny_unet()
    unet.register_to_config(sample_size=(8, 16))
    space = Space(shape=(1, 8, 16), sigma_min=0.002, sigma_max=80.0)
    save_teacher(Preconditioned(unet, EDM(), space), None, tmp_path / "wide")
    said = refused(capsys, tmp_path / "wide", "--data", "digits")
    assert "sample_size: [8, 16]: only square images are supported" in said


def test_one_image_is_too_few_to_measure_on(edm_folder, pictures, tmp_path, capsys):
    for path in list((tmp_path / "pictures").iterdir())[1:]:
        path.unlink()
    assert "holds one image: give two or more" in refused(capsys, edm_folder, "--data", pictures)


def test_an_output_that_is_not_finite_is_one_line(edm_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Preconditioned, "forward", lambda self, x, sigma, condition=None: x / (sigma.max() > 0.01))
    said = refused(capsys, edm_folder, "--data", "digits", "-o", tmp_path / "out")
    assert "at sigma 0.002 is not finite" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_teacher_whose_prediction_type_is_changed_is_told_so(tmp_path, capsys):
    arguments = {"name": "digits", "out": tmp_path, "device": "cpu", "teacher.train.kimg": 20}
    assert (
        main(["train-teacher", *(str(part) for key, value in arguments.items() for part in (f"--{key}", value))]) == 0
    )
    capsys.readouterr()
    teacher, changed = tmp_path / "digits" / "teacher", tmp_path / "changed"
    right = found(capsys, teacher, "--data", "digits")
    assert right["likely_prediction"] is None
    assert right["verdict"].startswith("it denoises better than a linear filter of the data at sigma ")
    shutil.copytree(teacher, changed)
    scheduler = changed / "scheduler" / "scheduler_config.json"
    for wrong in ("epsilon", "sample"):
        scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": wrong}))
        read = found(capsys, changed, "--data", "digits")
        assert read["likely_prediction"] == "v_prediction"
        assert f"give v_prediction, and its configuration says {wrong}: prediction_type" in read["verdict"]
        read_as = [row["read_as"]["v_prediction"] for row in read["denoising"]]
        assert read_as == pytest.approx([row["error"] for row in right["denoising"]], rel=1e-3)
