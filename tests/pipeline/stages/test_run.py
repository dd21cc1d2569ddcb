"""A whole run, tiny: what it leaves, what it does again, and what it refuses."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError

from fewstep.eval.images import pixels_sha256
from fewstep.files import sha256_file
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.reading import config_from_dict
from fewstep.pipeline.data.choice import choice_images, reference_images
from fewstep.pipeline.data.load import load_data

pytestmark = pytest.mark.timeout(600)
STAGES = {"teacher": "teacher", "student": "students/student", "eval": "eval"}


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the finished run, in tmp_path/digits, to change."""
    shutil.copytree(tiny_run, tmp_path / "digits")
    return tmp_path / "digits"


def snapshot(folder):
    """{file: sha256} of everything but the lock."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def refused(capsys, *arguments):
    """The line of a command that must end with exit code 2 and one line."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("fewstep: error: ")
    return err


def made(capsys, *arguments):
    """The stages that a command that must succeed made again, and the lines it printed."""
    capsys.readouterr()
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.partition(":")[0] for line in lines if ": done in " in line], lines


def test_manifests_tell_the_truth_about_every_file(tiny_run):
    for stage, folder in STAGES.items():
        manifest = json.loads((tiny_run / folder / "manifest.json").read_text())
        files = {name: entry["sha256"] for name, entry in manifest["outputs"].items()}
        assert files == {k: v for k, v in snapshot(tiny_run / folder).items() if k != "manifest.json"}
        assert manifest["stage"] == stage
        assert manifest["seconds"] > 0


def test_what_a_run_leaves(tiny_run):
    assert sorted(path.name for path in tiny_run.iterdir()) == sorted(
        [
            ".lock",
            "checkpoints",
            "config.json",
            "config.yaml",
            "data.json",
            "eval",
            "logs",
            "report",
            "students",
            "teacher",
            "trajectories",
        ]
    )
    assert not list((tiny_run / "checkpoints").iterdir())
    assert {path.name for path in (tiny_run / "report").iterdir()} >= {"index.html", "results.md", "results.json"}
    for stage, steps in (("teacher", 20), ("students/student", 10)):
        records = [json.loads(line) for line in (tiny_run / "logs" / f"{stage}.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == list(range(1, steps + 1))
        assert {"kimg", "loss", "grad_norm", "lr", "kimg_per_s", "seconds"} <= records[0].keys()
    assert not [path for path in tiny_run.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_quality_is_measured_against_no_image_that_choices_were_made_on(tiny_run):
    config = config_from_dict(json.loads((tiny_run / "config.json").read_text())).data
    training = load_data(config, "train").images
    choice, (left, name) = choice_images(config, training), reference_images(config, training)
    search = json.loads((tiny_run / "students" / "student" / "manifest.json").read_text())["search"]
    assert search["real"] == {"count": 359, "sha256": pixels_sha256(choice)}
    reference = json.loads((tiny_run / "eval" / "benchmark.json").read_text())["reference"]
    assert (reference["count"], reference["sha256"], reference["split"]) == (1438, pixels_sha256(left), name)
    assert name in (tiny_run / "report" / "index.html").read_text()


STOCK = """
import sys
sys.modules["fewstep"] = None  # importing it fails
from diffusers import DDPMPipeline, DiffusionPipeline, ConsistencyModelPipeline
teacher = DDPMPipeline.from_pretrained(sys.argv[1] + "/teacher")
assert teacher(batch_size=2, num_inference_steps=2).images[0].size == (8, 8)
student = DiffusionPipeline.from_pretrained(sys.argv[1] + "/students/student")
assert type(student) is ConsistencyModelPipeline
for steps in (1, 2, 4):
    images = student(batch_size=3, num_inference_steps=steps, output_type="np").images
    assert images.shape == (3, 8, 8, 1) and (images == images).all() and 0 <= images.min() <= images.max() <= 1
"""


def test_stock_diffusers_loads_teacher_and_student_without_fewstep(tiny_run):
    done = subprocess.run([sys.executable, "-c", STOCK, str(tiny_run)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


def test_a_second_run_does_nothing_quickly_and_prints_the_report_last(run, tiny, capsys):
    before, clock = snapshot(run), time.process_time()
    stages, lines = made(capsys, "run", *tiny(run.parent))
    assert stages == []
    assert time.process_time() - clock < 10
    assert [f"{stage}: up to date" for stage in STAGES] == [line for line in lines if "up to date" in line]
    assert lines[-1] == str(run / "report" / "index.html")
    assert {k: v for k, v in snapshot(run).items() if not k.startswith("report/")} == {
        k: v for k, v in before.items() if not k.startswith(("report/", "config."))
    } | {name: sha256_file(run / name) for name in ("config.json", "config.yaml")}


def test_the_kept_yaml_makes_the_same_run(run, tiny, capsys):
    made(capsys, "run", *tiny(run.parent))  # the copy's own folder in its config.yaml
    assert made(capsys, "run", str(run / "config.yaml"))[0] == []


def test_a_changed_student_key_makes_student_and_eval_again(run, tiny, capsys):
    teacher = snapshot(run / "teacher")
    stages, lines = made(capsys, "run", *tiny(run.parent, student__train__learning_rate=1e-3))
    assert stages == ["student", "eval"]
    (said,) = [line for line in lines if "distilled again from the start" in line]
    assert re.match(r"student: student\.train\.learning_rate 0\.003 -> 0\.001: distilled .* \(took \d+ s\)", said)
    assert snapshot(run / "teacher") == teacher
    assert json.loads((run / "config.json").read_text())["student"]["train"]["learning_rate"] == 1e-3


def test_a_removed_eval_folder_alone_is_made_again(run, tiny, capsys):
    shutil.rmtree(run / "eval")
    before = snapshot(run)
    stages, _ = made(capsys, "benchmark", *tiny(run.parent))
    assert stages == ["eval"]
    assert all(
        before[name] == value for name, value in snapshot(run).items() if name.startswith(("teacher/", "students/"))
    )


def test_a_benchmark_against_earlier_results_exits_with_one_on_a_regression(run, tiny, tmp_path, capsys):
    results = json.loads((run / "report" / "results.json").read_text())
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(results))
    arguments = ["benchmark", *tiny(run.parent), "--against", str(earlier)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no regression beyond 5 %")
    for sampler in results["samplers"]:
        if sampler["quality"]:
            fd = sampler["quality"]["metrics"]["fd"]
            fd.update(values=[value / 2 for value in fd["values"]], mean=fd["mean"] / 2)
    earlier.write_text(json.dumps(results))
    assert main(arguments) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("regression beyond 5 %")
    assert main([*arguments, "--bound", "1.5"]) == 0


def test_a_changed_byte_of_a_finished_output_is_named(run, tiny, capsys):
    weights = run / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    line = refused(capsys, "run", *tiny(run.parent))
    assert f"{weights}: is corrupt" in line
    assert f"remove {run / 'teacher'}" in line


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_teacher_that_cannot_be_folded_is_distilled(tiny, tmp_path, capsys, prediction):
    arguments = tiny(tmp_path, teacher__prediction=prediction, student__regression_kimg=0.128)
    stages, lines = made(capsys, "run", *arguments)
    assert stages == ["teacher", "trajectories", "student", "eval"]
    assert any("regressing onto the teacher for 0.128 kimg" in line for line in lines)
    manifest = json.loads((tmp_path / "digits" / "students" / "student" / "manifest.json").read_text())
    assert manifest["regression"]["kimg"] == 0.128
    assert len(manifest["conversion_rmse"]) == 8
    assert made(capsys, "run", *arguments)[0] == []


def test_a_run_that_is_wrong_leaves_nothing_but_the_lock(tiny, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    faults = {"data__source": f"imagefolder:{tmp_path / 'empty'}", "teacher__source": str(tmp_path / "empty")}
    for number, (key, value) in enumerate(faults.items()):
        line = refused(capsys, "run", *tiny(tmp_path, name=f"wrong{number}", **{key: value}))
        assert "empty" in line
    assert [path.name for path in (tmp_path / "wrong0").iterdir()] == [".lock"]


def test_a_teacher_from_elsewhere(tiny, tiny_run, tmp_path, capsys):
    source = tiny_run / "teacher"
    before = snapshot(source)
    stages, lines = made(capsys, "distill", *tiny(tmp_path, teacher__source=source, student__train__kimg=0.128))
    assert stages == ["teacher", "trajectories", "student"]
    assert not any("training a UNet" in line for line in lines)
    assert snapshot(source) == before
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert sha256_file(tmp_path / "digits" / "teacher" / weights) == before[weights]


def test_a_teacher_with_a_scaling_of_its_own_is_distilled_measured_and_reported(tiny, edm_folder, tmp_path, capsys):
    samplers = '["teacher@heun:2", "student@1", "student@2"]'
    arguments = tiny(tmp_path, teacher__source=edm_folder, eval__samplers=samplers)
    stages, lines = made(capsys, "run", *arguments)
    assert stages == ["teacher", "trajectories", "student", "eval"]
    assert any("converting the edm teacher" in line for line in lines)
    results = json.loads((tmp_path / "digits" / "report" / "results.json").read_text())
    assert "teacher@heun:2" in json.dumps(results)
    assert made(capsys, "run", *arguments)[0] == []


def test_a_teacher_of_other_images_is_refused(tiny, tiny_run, tmp_path, capsys):
    size = {"data__image_size": 16, "eval__extractor": "inception", "eval__images": 2049}
    arguments = tiny(tmp_path, teacher__source=tiny_run / "teacher", **size)
    line = refused(capsys, "train-teacher", *arguments)
    assert "makes images of 1x8x8 and the data are 1x16x16" in line
    assert not (tmp_path / "digits" / "teacher").exists()


def test_a_teacher_with_fewer_timesteps_than_a_sampler_has_steps_is_refused(tiny, tiny_run, tmp_path, capsys):
    source = tmp_path / "short"
    shutil.copytree(tiny_run / "teacher", source)
    path = source / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 40}))
    arguments = tiny(tmp_path, teacher__source=source, eval__samplers="[teacher@ddim:50, student@1]")
    assert "teacher@ddim:50 has more steps than the teacher has timesteps, 40" in refused(capsys, "run", *arguments)
    assert not (tmp_path / "digits" / "teacher").exists()


def test_a_half_finished_stage_of_another_configuration_is_refused_and_kept(tiny, tmp_path, capsys, monkeypatch):
    def full(*given, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.pipeline.stages.teacher.save_teacher", full)
        line = refused(capsys, "train-teacher", *tiny(tmp_path))
    assert f"{tmp_path / 'digits'}: No space left on device" in line
    before = snapshot(tmp_path / "digits")
    assert "checkpoints/teacher/step-000000020/MANIFEST.json" in before
    line = refused(capsys, "train-teacher", *tiny(tmp_path, teacher__train__learning_rate=1e-3))
    assert "was made by another configuration" in line
    assert snapshot(tmp_path / "digits") == before  # its config.yaml still tells which
    stages, lines = made(capsys, "train-teacher", *tiny(tmp_path))
    assert stages == ["teacher"]
    assert "  continues at step 20 of 20" in lines


@pytest.mark.parametrize(
    "place", ["fewstep.pipeline.training.checkpoint.save_file", "fewstep.pipeline.stages.student.save_student"]
)
def test_a_full_disk_reported_by_safetensors_leaves_the_earlier_state(run, tiny, capsys, monkeypatch, place):
    def full(*given, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    before = snapshot(run)
    monkeypatch.setattr(place, full)
    line = refused(capsys, "run", *tiny(run.parent, student__train__kimg=0.128))
    assert f"{run}: No space left on device: free some space" in line
    after = snapshot(run)
    assert all(after[name] == value for name, value in before.items() if name.startswith(tuple(STAGES)))
    assert not list(run.glob(".*.new"))


def test_two_precisions_in_one_run(tiny, tmp_path, capsys):
    short = {"teacher__train__kimg": 0.128, "student__train__kimg": 0.128, "student__refit_steps": 2}
    arguments = tiny(tmp_path, teacher__train__precision="bf16", student__train__precision="fp32", **short)
    assert made(capsys, "distill", *arguments)[0] == ["teacher", "trajectories", "student"]


@pytest.mark.parametrize(
    ("has", "slower"), [({"avx512_bf16": True}, False), ({"avx2": True}, True), ({"architecture": "aarch64"}, False)]
)
def test_bf16_on_a_processor_without_it_is_named_as_slow(tiny, tmp_path, capsys, monkeypatch, has, slower):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"} | has, raising=False)
    arguments = tiny(tmp_path, teacher__train__precision="bf16", teacher__train__kimg=0.064)
    assert main(["train-teacher", *arguments]) == 0
    assert ("no arithmetic in bf16, so that train.precision fp32 is faster" in capsys.readouterr().out) == slower
