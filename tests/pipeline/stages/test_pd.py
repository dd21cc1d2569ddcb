"""Progressive distillation in a run: resumed to the bit, a stock DDIMPipeline, measured as any student, no search."""

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler, DiffusionPipeline

import fewstep
from fewstep.errors import UserError
from fewstep.eval.images import to_uint8
from fewstep.eval.noise import KeyedNoise
from fewstep.files import read_json
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.sampling.models import ModelSampler
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.students.ddim import ddim_student
from fewstep.students.progressive import ProgressiveDistillation
from fewstep.teachers.load import ddpm_model
from small_training import stored

pytestmark = pytest.mark.timeout(600)


class Stopped(ProgressiveDistillation):
    """Calls `after` with each step done."""

    def after(self, step):
        pass

    def update(self, progress):
        super().update(progress)
        self.after(progress.step + 1)


@pytest.mark.parametrize("interrupted_at", [4, 6])
def test_a_training_resumed_in_a_later_stage_is_the_whole_one_to_the_bit(training, tiny_unet, interrupted_at):
    def one(name):
        found = training(name)
        pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        found.job = replace(found.job, data=stored(pixels))
        return found

    def objective():
        scheduler = DDPMScheduler(prediction_type="v_prediction")
        student = ddim_student(ddpm_model(tiny_unet(seed=1, dropout=0.3), scheduler), scheduler)
        return Stopped(student, 8)  # three stages in twelve steps

    whole, parts = one("whole"), one("parts")
    whole.run(objective())
    parts.run(objective(), interrupted_at=interrupted_at)
    parts.run(objective())
    assert parts.hashes(12) == whole.hashes(12)
    assert parts.trace() == whole.trace()


def test_a_run_saves_a_stock_pipeline_and_measures_it_beside_a_consistency_model(tiny, tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "digits")
    samplers = '["student@1", "pd@2"]'
    several = ("--students.student.sigma_min", "0.002", "--students.pd.method", "{name: pd, start_steps: 4}")
    assert main(["run", *tiny(tmp_path, eval__samplers=samplers), *several]) == 0
    assert "student: up to date" in capsys.readouterr().out
    folder = tmp_path / "digits" / "students" / "pd"
    manifest, card = read_json(folder / "manifest.json"), (folder / "README.md").read_text()
    assert manifest["search"] is None
    assert manifest["cost"]["teacher"] == 2
    assert manifest["timesteps"]["4"] == [999, 749, 499, 249]
    assert "| 2 | 999, 499 |" in card
    assert "none were searched for" in card
    assert set(manifest["inputs"]["search"]) == set()
    results = {each["name"]: each for each in read_json(tmp_path / "digits" / "report" / "results.json")["samplers"]}
    assert (results["pd@2"]["kind"], results["pd@2"]["nfe"]) == ("student", 2)
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is DDIMPipeline
    pipeline.set_progress_bar_config(disable=True)
    student = fewstep.load_student(folder)
    for steps in (1, 2, 4):
        generators = list(KeyedNoise((1, 8, 8), 7, 0, 5).generators)
        stock = np.asarray(pipeline(5, num_inference_steps=steps, generator=generators, output_type="np")[0])
        theirs = to_uint8(torch.from_numpy(stock).permute(0, 3, 1, 2) * 2 - 1)
        assert (fewstep.sample(student, 5, steps, 7).int() - theirs.int()).abs().max() <= 1
    subject, _ = open_subject(f"{folder}@4", torch.device("cpu"))
    assert isinstance(subject, ModelSampler)
    assert (subject.kind, subject.nfe, subject.label) == ("student", 4, "digits/pd, 4 steps")
    searching = ("--students.student.search_images", "33")
    capsys.readouterr()
    assert main(["distill", *tiny(tmp_path, student__search_images=40), *several, *searching]) == 0
    assert "student pd: up to date" in capsys.readouterr().out


def test_an_epsilon_teacher_is_refused_before_it_is_trained():
    with pytest.raises(UserError, match=r"^teacher\.prediction: 'epsilon': must be v_prediction or sample for student"):
        load_config("digits", {"teacher.prediction": "epsilon", "student.method": "pd"})
