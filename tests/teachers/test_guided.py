"""Classes: what guidance computes and costs, and how labels are left out in training."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from fewstep.pipeline.sampling.models import teacher_sampler
from fewstep.teachers.guided import Guided
from fewstep.teachers.interfaces import Batch, Condition, Progress, Space
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler, build_unet
from fewstep.teachers.objective import DDPMObjective, DenoisingObjective, without_some
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM

SHAPE: dict[str, Any] = {"channels": (16,), "layers_per_block": 1, "attention": (False,), "norm_groups": 8}
LABELS = torch.tensor([0, 1, 2, 2])


def network(classes: int = 4) -> UNet2DModel:
    return build_unet((1, 8, 8), seed=0, dropout=0.0, classes=classes, **SHAPE).eval()


@pytest.fixture
def model() -> Preconditioned:
    return ddpm_model(network(), build_scheduler(100, "linear", "v_prediction"), null_class=True).eval()


@torch.no_grad()
def test_guidance_is_the_formula_and_is_nothing_at_one_and_without_labels(model):
    x, sigma = torch.randn(4, 1, 8, 8), torch.full((4,), 2.0)
    condition = Condition(labels=LABELS)
    none, asked = model(x, sigma), model(x, sigma, condition)
    assert (none - asked).abs().max() > 1e-3
    for weight in (0.0, 1.0, 3.0):
        wanted = none + weight * (asked - none)
        torch.testing.assert_close(Guided(model, weight)(x, sigma, condition), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(Guided(model, 3.0)(x, sigma), none)


@torch.no_grad()
def test_a_guided_sampler_says_and_makes_two_evaluations_an_image(model):
    sampler, rows = teacher_sampler(Guided(model, 2.0), "heun", 3), []
    (evaluated,) = sampler.networks
    evaluated.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))

    class Noise:
        generators: Sequence[torch.Generator] = ()

        def draw(self) -> Tensor:
            return torch.zeros(4, 1, 8, 8)

    sampler.sample(Noise(), LABELS)
    assert sampler.nfe == 2 * (2 * 3 - 1)
    assert sum(rows) == sampler.nfe * 4
    assert sampler.num_classes == 3


def test_a_second_denoiser_starts_as_the_model_without_guidance(model):
    clone = Guided(model, 2.0).clone()
    assert isinstance(clone, Preconditioned)
    assert clone.space.num_classes == 3


def test_labels_are_left_out_at_the_share_that_is_asked_for():
    labels, generator = torch.arange(10_000) % 10, torch.Generator().manual_seed(0)
    found = without_some(labels, 10, 0.25, generator)
    assert float((found == 10).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(found[found < 10], labels[found < 10])
    assert without_some(labels, 10, 0.0, generator) is labels


@pytest.mark.parametrize("family", ["ddpm", "edm"])
def test_training_gives_the_row_of_none_a_gradient_only_with_label_dropout(family):
    for share, touched in ((0.0, False), (0.9, True)):
        unet = network()
        if family == "ddpm":
            objective = DDPMObjective(unet, build_scheduler(100, "linear", "epsilon"), share)
        else:
            space = Space(shape=(1, 8, 8), sigma_min=0.002, sigma_max=80.0, num_classes=3, null_class=True)
            objective = DenoisingObjective(Preconditioned(unet, EDM(), space), share)
        batch = Batch(images=torch.zeros(4, 1, 8, 8), condition=Condition(labels=LABELS))
        terms = objective(batch, Progress(step=0, total_steps=10, images=0), torch.Generator().manual_seed(1))
        terms.loss.mean().backward()
        assert isinstance(unet.class_embedding, torch.nn.Embedding)
        gradient = unet.class_embedding.weight.grad
        assert gradient is not None
        assert (gradient[3].abs().sum() > 0) == touched
        assert terms.loss.shape == terms.sigma.shape == (4,)
