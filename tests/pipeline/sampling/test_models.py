"""Samplers by name: their evaluations are the ones counted, their images a function of the noise alone."""

import pytest
import torch

import fewstep
from fewstep.eval.images import Generated
from fewstep.eval.noise import KeyedNoise
from fewstep.pipeline.sampling.grammar import parse_own
from fewstep.pipeline.sampling.models import build_sampler, student_sampler

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
NAMES = {
    "teacher@ddpm:6": ("Teacher, DDPM, 6 steps", 6),
    "teacher@ddim:5": ("Teacher, DDIM, 5 steps", 5),
    "teacher@dpmsolver++:4": ("Teacher, DPM-Solver++, 4 steps", 4),
    "teacher@unipc:4": ("Teacher, UniPC, 4 steps", 4),
    "teacher@heun:3": ("Teacher, Heun, 3 steps", 5),
    "student@1": ("Student, 1 step", 1),
    "student@2": ("Student, 2 steps", 2),
    "student@4": ("Student, 4 steps", 4),
}


@pytest.fixture(scope="module")
def models(tiny_run):
    return fewstep.load_teacher(tiny_run / "teacher"), {"student": fewstep.load_student(tiny_run)}


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_is_what_its_name_says(models, name):
    teacher, student = models[0], models[1]["student"]
    sampler = build_sampler(parse_own(name), *models)
    label, nfe = NAMES[name]
    assert (sampler.name, sampler.label, sampler.nfe) == (name, label, nfe)
    assert sampler.kind == name.partition("@")[0]
    assert sampler.shape == (1, 8, 8)
    network = teacher.network if sampler.kind == "teacher" else student.network
    assert sampler.network_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert list(sampler.schedule) == sorted(sampler.schedule, reverse=True)
    calls = []
    hook = network.register_forward_hook(lambda *given: calls.append(1))
    first = sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 3))
    hook.remove()
    assert len(calls) == nfe
    assert first.shape == (3, 1, 8, 8)
    assert first.dtype == torch.float32
    assert float(first.abs().max()) <= 1
    assert torch.equal(first, sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 3)))  # no state left by the first call
    assert not torch.equal(first, sampler.sample(KeyedNoise((1, 8, 8), 1, 0, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_depend_on_the_batch_size(models, name):
    sampler = build_sampler(parse_own(name), *models)
    one, seven, all_ = (Generated(sampler, 3, 64, batch).images(0, 64).int() for batch in (1, 7, 64))
    for other in (seven, all_):
        difference = (other - one).abs()
        assert difference.max() <= 1  # floats are rounded by batch size
        assert (difference == 0).double().mean() >= 0.999


def test_noise_levels_can_be_given(models):
    sampler = student_sampler(models[1]["student"], 2, [80.0, 1.0])
    assert sampler.schedule == [80.0, 1.0]
    assert sampler.nfe == 2
