"""Several trainings of a student in a run: another one leaves the first alone and is measured, and not timed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from fewstep.files import read_json, sha256_file
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.keys import config_keys
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.stages import student
from fewstep.pipeline.stages.context import RunContext

pytestmark = pytest.mark.timeout(600)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_a_further_training_has_other_images_and_leaves_the_first_alone(tiny, tiny_run, tmp_path, capsys, monkeypatch):
    run, jobs, train = tmp_path / "digits", [], student.train
    shutil.copytree(tiny_run, run)
    first = sha256_file(run / "students" / "student" / "manifest.json")
    times = {
        name: read_json(run / "eval" / "samplers" / f"{name}.json")["timing"] for name in ("student_1", "student_2")
    }
    monkeypatch.setattr(
        student, "train", lambda objective, job, *rest: jobs.append(job) or train(objective, job, *rest)
    )

    def made(seeds):
        capsys.readouterr()
        assert main(["run", *tiny(tmp_path, student__training_seeds=seeds)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert not any("Timing" in line or "Cold start" in line for line in lines)
        measured = [line.partition(", seed")[0].strip() for line in lines if "seed 0: FD" in line]
        return [line.partition(":")[0] for line in lines if ": done in " in line], measured

    assert made(2) == (["student student-2", "eval"], ["student-2, 1 step", "student-2, 2 steps"])
    assert made(3) == (["student student-3", "eval"], ["student-3, 1 step", "student-3, 2 steps"])
    assert sha256_file(run / "students" / "student" / "manifest.json") == first
    names = ("student", "student-2", "student-3")
    assert len({sha256_file(run / "students" / name / WEIGHTS) for name in names}) == 3
    assert [
        read_json(run / "students" / name / "manifest.json")["inputs"]["weights"]["training"] for name in names[1:]
    ] == [2, 3]
    batches = [job.batch(0, 0, torch.device("cpu")).images for job in (replace(jobs[0], seed=0), *jobs)]
    assert not any(torch.equal(batches[a], batches[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    results = {each["name"]: each for each in read_json(run / "report" / "results.json")["samplers"]}
    assert {name: results[name.replace("_", "@")]["timing"] for name in times} == times
    assert all(results[f"{name}@1"]["quality"] and results[f"{name}@1"]["timing"] is None for name in names[1:])
    assert json.loads((run / "logs" / "students" / "student-2.jsonl").read_text().splitlines()[-1])["step"] == 10


def test_messages_of_a_regression_name_a_key_that_there_is(tmp_path, monkeypatch):
    config = load_config("digits", {"out": str(tmp_path)})
    jobs = []
    monkeypatch.setattr(student, "train", lambda objective, job, accelerator: jobs.append(job) or {"average": None})
    monkeypatch.setattr(student, "_images", lambda *given: (None, None))
    monkeypatch.setattr(student, "trusted_range", lambda *given: None)
    monkeypatch.setattr(student, "Regression", lambda *given: None)
    with pytest.raises(AssertionError):  # what `train` gives is no student
        student._regress(RunContext(config), config.trainings["student"], None, None, "c0ffee")  # type: ignore[arg-type]
    assert f"{jobs[0].title}.train.learning_rate" in config_keys()
    assert jobs[0].stream == "student-regression"
