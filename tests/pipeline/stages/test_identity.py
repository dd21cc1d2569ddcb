"""A stage is made again for the content of what it reads, not for a path, a log setting or a neighbour."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fewstep.files import read_json, sha256_file
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.stages.run import Run

pytestmark = pytest.mark.timeout(600)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SAMPLERS = ["teacher@ddim:2", "student@1", "student@2"]


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the finished run, in tmp_path/digits, to change."""
    shutil.copytree(tiny_run, tmp_path / "digits")
    return tmp_path / "digits"


def made(capsys, *arguments):
    """The stages that a command that must succeed made again, and the lines it printed."""
    capsys.readouterr()
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.partition(":")[0] for line in lines if ": done in " in line], lines


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_settings_that_change_no_number_make_nothing_again(run, tiny, capsys):
    silent = {
        f"{part}__train__{key}": 7 for part in ("teacher", "student") for key in ("log_every", "keep_checkpoints")
    }
    assert made(capsys, "run", *tiny(run.parent, **silent, student__train__checkpoint_kimg=0.2))[0] == []
    assert read_json(run / "config.json")["student"]["train"]["log_every"] == 7


def test_a_log_setting_discards_no_checkpoint(tiny, tmp_path, capsys, monkeypatch):
    def full(*given, **options):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.pipeline.stages.teacher.save_teacher", full)
        refused(capsys, "train-teacher", *tiny(tmp_path))
    stages, lines = made(capsys, "train-teacher", *tiny(tmp_path, teacher__train__log_every=3))
    assert stages == ["teacher"]
    assert "  continues at step 20 of 20" in lines


def test_another_name_for_the_same_data_and_another_folder_make_nothing_again(run, tiny, capsys):
    run.rename(run.with_name("moved"))
    assert made(capsys, "run", *tiny(run.parent, name="moved"))[0] == []


def test_a_loaded_teacher_is_known_by_its_files_not_by_their_path(tiny, tiny_run, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(tiny_run / "teacher", source)
    arguments = tiny(tmp_path, teacher__source=source, student__train__kimg=0.128)
    assert made(capsys, "distill", *arguments)[0] == ["teacher", "trajectories", "student"]
    assert made(capsys, "distill", *arguments)[0] == []
    shutil.copytree(source, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.md").write_text("no part of the model")
    elsewhere = tiny(tmp_path, teacher__source=tmp_path / "elsewhere", student__train__kimg=0.128)
    assert made(capsys, "distill", *elsewhere)[0] == []
    tensors = load_file(source / WEIGHTS)
    name = next(name for name in tensors if name.endswith("weight"))
    save_file({**tensors, name: (tensors[name] * np.float32(1.01))}, source / WEIGHTS, {"format": "pt"})
    stages, lines = made(capsys, "distill", *arguments)
    assert stages == ["teacher", "trajectories", "student"]
    assert any(line.startswith("teacher: teacher.source is another one: loaded again (took ") for line in lines)
    assert any(line.startswith("student: teacher is another one: distilled again from the start") for line in lines)


def test_what_the_search_reads_makes_the_search_again_and_keeps_the_weights(run, tiny, capsys, monkeypatch):
    before = sha256_file(run / "students" / "student" / WEIGHTS)
    manifest = read_json(run / "students" / "student" / "manifest.json")
    stages, lines = made(capsys, "distill", *tiny(run.parent, student__search_images=40))
    assert stages == ["student"]
    said = "student: student.search_images 32 -> 40: its noise levels searched again (took "
    assert any(line.startswith(said) for line in lines)
    assert not any("distilling" in line for line in lines)
    assert sha256_file(run / "students" / "student" / WEIGHTS) == before
    now = read_json(run / "students" / "student" / "manifest.json")
    assert (now["conversion_rmse"], now["seconds"]) == (manifest["conversion_rmse"], manifest["seconds"])
    assert now["search"]["images"] == 40
    monkeypatch.setattr(Run, "_extractor", lambda self: {"eval.extractor": "another"})
    _, lines = made(capsys, "distill", *tiny(run.parent, student__search_images=40))
    assert any("eval.extractor digits-cnn -> another: its noise levels searched again" in line for line in lines)
    assert sha256_file(run / "students" / "student" / WEIGHTS) == before


def test_another_student_leaves_the_first_and_its_results_alone(run, tiny, capsys):
    first = sha256_file(run / "students" / "student" / "manifest.json")
    several = ["--students.student.sigma_min", "0.002", "--students.ect.method", "ect"]
    stages, lines = made(capsys, "run", *tiny(run.parent), *several)
    assert stages == ["student ect", "eval"]
    assert sha256_file(run / "students" / "student" / "manifest.json") == first
    measured = [line for line in lines if "seed 0: FD" in line]
    assert [line.partition(", seed")[0].strip() for line in measured] == ["ect, 1 step", "ect, 2 steps"]
    results = read_json(run / "report" / "results.json")
    assert [each["name"] for each in results["samplers"]][1:] == ["student@1", "ect@1", "student@2", "ect@2"]
    assert {each["kind"] for each in results["samplers"]} == {"teacher", "student"}
    assert [stage["stage"] for stage in results["stages"]] == [
        "teacher",
        "trajectories",
        "student",
        "student ect",
        "eval",
    ]
    assert read_json(run / "students" / "ect" / "manifest.json")["stage"] == "student ect"
    traces = [(run / "logs" / "students" / f"{name}.jsonl").read_text() for name in ("student", "ect")]
    assert traces[0] != traces[1]
    arguments = ["sample", str(run), "--num", "2", "-o"]
    assert f"{run}: holds the students ect, student: name one" in refused(capsys, *arguments, str(run / "x"))
    assert f"{run}: 'cd': holds the students ect, student" in refused(
        capsys, *arguments, str(run / "x"), "--student", "cd"
    )
    assert main([*arguments, str(run / "x"), "--student", "ect"]) == 0


def test_an_added_sampler_is_measured_alone(run, tiny, capsys):
    kept = {name: read_json(run / "eval" / "samplers" / name) for name in os.listdir(run / "eval" / "samplers")}
    stages, lines = made(capsys, "run", *tiny(run.parent, eval__samplers=json.dumps([*SAMPLERS, "teacher@heun:2"])))
    assert stages == ["eval"]
    assert all(read_json(run / "eval" / "samplers" / name) == value for name, value in kept.items())
    assert {line.partition(", seed")[0].strip() for line in lines if ", seed " in line} == {"Teacher, Heun, 2 steps"}
    assert [line for line in lines if line.startswith("  Timing 1 samplers in turns, and again ")]
    said = "eval: samplers.teacher@heun:2 is new: measured again where a result depends on it (took "
    assert any(line.startswith(said) for line in lines)


def test_neighbours_are_of_the_first_student_sampler_whatever_was_measured_before(run, tiny, capsys):
    _, lines = made(capsys, "run", *tiny(run.parent, eval__samplers=json.dumps(["teacher@ddim:2", "student@2"])))
    assert read_json(run / "eval" / "neighbours.json")["sampler"] == "student@2"
    assert {line.partition(", seed")[0].strip() for line in lines if ", seed " in line} == {"Student, 2 steps"}


def test_a_setting_that_all_results_depend_on_measures_all_again(run, tiny, capsys):
    _, lines = made(capsys, "run", *tiny(run.parent, eval__kid_subset_size=21))
    assert sum("seed 0: FD" in line for line in lines) == 3
    assert any(line.startswith("eval: eval.kid_subset_size 20 -> 21: measured again") for line in lines)


def test_a_report_of_results_that_are_not_of_the_folder_s_configuration_and_models_is_refused(run, tiny, capsys):
    assert main(["report", str(run)]) == 0
    config = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps(config | {"eval": config["eval"] | {"images": 70}}))
    line = refused(capsys, "report", str(run))
    assert re.search(
        rf"{run}/eval: was measured .*\(eval\.images 66 -> 70\); fewstep run {run}/config\.yaml measures", line
    )
    (run / "config.json").write_text(json.dumps(config | {"seed": -1}))
    assert f"{run}/config.json: seed: -1: must be a whole number" in refused(capsys, "report", str(run))
    (run / "config.json").write_text(json.dumps(config))
    assert main(["report", str(run)]) == 0
    made(capsys, "distill", *tiny(run.parent, student__train__learning_rate=1e-3))
    assert "samplers.student@1 is another one" in refused(capsys, "report", str(run))
    made(capsys, "run", *tiny(run.parent, student__train__learning_rate=1e-3))
    assert main(["report", str(run)]) == 0
