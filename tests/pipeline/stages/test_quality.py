"""The quality of weight averages while a student is distilled: right, without a trace in the training, and used."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import fewstep
from fewstep.eval import seeds
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.images import to_uint8
from fewstep.eval.noise import KeyedNoise
from fewstep.eval.quality.metrics import kernel_distance
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.choice import choice_images
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.stages.quality import Quality
from fewstep.pipeline.training.loop import train
from fewstep.students.consistency import ConsistencyModel, plan_consistency
from fewstep.students.methods.ect import ECT
from fewstep.teachers.interfaces import NONE, Space
from small_training import stored

COUNT = 60
JUDGE = SimpleNamespace(extractor="digits-cnn", weights=None)
RUN: Any = SimpleNamespace(config=SimpleNamespace(eval=JUDGE), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig(source="digits"), "train").images


class Noisy(nn.Module):
    """A made-up student: real digits, and a share of the noise that it gets."""

    space, most_steps, device = Space(shape=(1, 8, 8), sigma_min=0.002, sigma_max=80.0), 8, torch.device("cpu")

    def __init__(self, images, share):
        super().__init__()
        self.images, self.share = images.float() / 127.5 - 1, share

    def plan(self, steps):
        return plan_consistency([80.0] * steps)

    def forward(self, x, sigma, condition=NONE):
        return self.images[: len(x)] + self.share * x / 80


@pytest.mark.parametrize("name", ["digits-cnn", "small-cnn"])
def test_one_subset_of_all_images_gives_our_own_kid(digits, name):
    real, student = digits[:COUNT], Noisy(digits[COUNT : 2 * COUNT], 1.0)
    run: Any = SimpleNamespace(config=SimpleNamespace(eval=SimpleNamespace(extractor=name, weights=None)))
    run.device = torch.device("cpu")
    noise = KeyedNoise((1, 8, 8), seeds.SEARCH, 0, COUNT).draw()
    images = to_uint8(student(80 * noise, None).clamp(-1, 1))
    extractor = load_extractor(name, None, "cpu")
    ours = kernel_distance(extractor(images), extractor(real), COUNT)
    assert abs(ours) > 0.01
    assert Quality(run, COUNT, real).kid(student) == pytest.approx(ours, rel=1e-9)


def test_values_are_the_same_at_every_call_in_any_order_and_the_generator_is_left_alone(digits):
    students = {"2": Noisy(digits[:250], 0.3), "5": Noisy(digits[250:500], 0.1)}
    quality = Quality(RUN, 230, digits[600:900])  # three batches; subsets of 100
    state = torch.get_rng_state()
    first = quality(students)
    assert list(first) == ["kid_2", "kid_5"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert quality(dict(reversed(students.items()))) == first
    assert (quality.images, len(quality.metric.real_features)) == (4 * 230, 3)


@pytest.mark.parametrize(("better", "chosen"), [("0.5", "0.5"), ("10", "10"), ("2", "2")])
def test_the_average_with_the_better_images_wins(digits, capsys, better, chosen):
    averages = {name: Noisy(digits[:COUNT], 0.1 if name == better else 0.8) for name in ("0.5", "2", "10")}
    average, facts = Quality(RUN, COUNT, digits[600:900]).best(averages)
    assert average is averages[better]
    assert facts["chosen"] == chosen
    assert facts["halflives"][chosen] == min(facts["halflives"].values())
    assert facts["cost"]["images"] == 3 * COUNT
    assert f"that of {chosen} kimg is saved" in capsys.readouterr().out


def test_a_training_with_it_is_the_training_without_it_to_the_bit(training, tiny_unet, gaussian, digits):
    def distilled(name, *probe):
        one = training(name, ema_halflife_kimg=(0.001, 0.05), kimg=0.048)
        one.job = replace(one.job, data=stored(digits[:40]))
        objective = ECT().build(ConsistencyModel(tiny_unet(dropout=0.3)), gaussian(0.0, 1.0))
        train(objective, one.job, Accelerator(cpu=True), *probe)
        assert objective.network.training
        return one

    without, probed = distilled("without"), distilled("probed", Quality(RUN, 32, digits[600:700]), 0.016)
    assert probed.hashes(6) == without.hashes(6)
    kept = [{key: value for key, value in each.items() if "kid" not in key} for each in probed.trace()]
    assert kept == without.trace()
    assert [each["step"] for each in probed.trace() if {"kid_0.001", "kid_0.05"} <= each.keys()] == [2, 4, 6]


def test_a_run_saves_the_chosen_average_and_says_so(tiny_run, tmp_path, tiny, digits, capsys):
    run = tmp_path / "digits"
    shutil.copytree(tiny_run, run)
    several = {"student__train__ema_halflife_kimg": "[0.002, 0.01]", "student__quality_kimg": 0.16}
    assert main(["distill", *tiny(tmp_path, **several)]) == 0
    folder = run / "students" / "student"
    facts = json.loads((folder / "manifest.json").read_text())["quality"]
    records = [json.loads(line) for line in (run / "logs" / "students" / "student.jsonl").read_text().splitlines()]
    assert [each["step"] for each in records if "kid_0.01" in each] == [5, 10]
    assert facts["halflives"] == {name: records[-1][f"kid_{name}"] for name in ("0.002", "0.01")}
    assert facts["cost"]["images"] == 2 * 2 * 32
    assert f"Its weights are the average of half-life {facts['chosen']} kimg" in (folder / "README.md").read_text()
    quality = Quality(RUN, 32, choice_images(DataConfig(source="digits"), digits))
    assert quality.kid(fewstep.load_student(folder)) == pytest.approx(facts["halflives"][facts["chosen"]], rel=1e-3)
    capsys.readouterr()
    assert main(["distill", *tiny(tmp_path, **several, student__search_images=40)]) == 0
    assert "student.search_images 32 -> 40: distilled again from the start" in capsys.readouterr().out
