"""From teachers of every family to students: folded where that is exact, else regressed."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.convert import (
    FOLDS,
    Regression,
    check_convertible,
    conversion_error,
    convert_teacher,
    judged_sigmas,
    trusted_range,
)
from fewstep.teachers.interfaces import NONE, Batch, Condition, Progress, Space, one_each
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.refusal import FOLDED, REGRESSED
from fewstep.teachers.scaling import EDM, Consistency
from small_unet import UNET

Build = Callable[..., UNet2DModel]
SIGMAS = (0.01, 0.05, 0.2, 0.5, 1.0, 2.5, 10.0, 80.0)
PROGRESS = Progress(step=0, total_steps=1, images=0)


def teacher_of(unet: UNet2DModel, prediction: Any = "v_prediction") -> Any:
    return ddpm_model(unet.eval().requires_grad_(False), build_scheduler(1000, "linear", prediction))


def convert(teacher: Preconditioned, steps: int, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return convert_teacher(teacher, sigma_min=0.002, sigma_max=80.0, refit_steps=steps, generator=generator)[0]


def images(num: int = 16) -> Tensor:
    return torch.rand((num, 1, 8, 8), generator=torch.Generator().manual_seed(9)) * 2 - 1


def errors_of(model: ConsistencyModel, teacher: Preconditioned) -> dict[float, float]:
    return conversion_error(model, teacher, images(), torch.Generator().manual_seed(1), SIGMAS)


@pytest.fixture(scope="module")
def teacher(tiny_unet: Build) -> Any:
    return teacher_of(tiny_unet(seed=11))


class Reembedded(nn.Module):
    """A teacher's time projection, read through 250 ln sigma: what a perfect refit would compute."""

    def __init__(self, teacher: Preconditioned) -> None:
        super().__init__()
        unet: Any = teacher.network
        self.projection, self.scaling = unet.time_proj, teacher.scaling

    def forward(self, timestep: Tensor) -> Tensor:
        return self.projection(self.scaling((timestep / 250).exp()).c_noise)


@pytest.mark.parametrize("family", ["v_prediction", "edm"])
def test_but_for_the_time_embedding_a_folded_student_is_the_teacher(tiny_unet: Build, family: str):
    teacher = teacher_of(tiny_unet(seed=11))
    if family == "edm":
        space = Space(shape=(1, 8, 8), sigma_min=0.002, sigma_max=80.0)
        teacher = Preconditioned(teacher.network, EDM(sigma_data=0.5), space)
    model = convert(teacher, 0).eval()
    model.network.time_proj = Reembedded(teacher)
    errors = errors_of(model, teacher)
    # c_skip is moved by sigma_min, by 1.3e-3 (sigma_data 1) at most, times pixels of the size of one
    assert max(errors.values()) < (2e-3 if family == "v_prediction" else 6e-3), errors
    assert errors[10.0] < 5e-4
    assert errors[80.0] < 5e-4


def test_the_refit_brings_the_student_to_the_teacher(teacher: Any):
    """A 16-channel network's embedding can be fitted only so far; 0.043 becomes 0.022 in 300 steps."""
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    unfit, fit = (convert(teacher, steps).eval() for steps in (0, 300))
    wrong, errors = (errors_of(model, teacher) for model in (unfit, fit))
    assert max(errors.values()) < 0.03, errors
    assert max(errors.values()) < 0.7 * max(wrong.values())
    for key, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_only_the_last_convolution_and_the_time_embedding_differ(teacher: Any):
    model = convert(teacher, 2)
    old, new = teacher.network.state_dict(), model.network.state_dict()
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert {key.split(".")[0] for key in changed} == {"conv_out", "time_embedding"}
    assert torch.equal(new["conv_out.weight"], -old["conv_out.weight"])
    assert torch.equal(new["conv_out.bias"], -old["conv_out.bias"])


def test_the_student_is_ready_to_train_and_shares_nothing(teacher: Any):
    model = convert(teacher, 1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    shared = {p.data_ptr() for p in teacher.network.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared


def test_conversion_is_a_function_of_the_generator(teacher: Any):
    weights = [convert(teacher, 3, seed).network.time_embedding.linear_1.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_teacher_that_cannot_be_folded_gives_the_starting_weights(tiny_unet: Build, prediction: str):
    teacher = teacher_of(tiny_unet(seed=2), prediction)
    generator = torch.Generator().manual_seed(0)
    model, exact = convert_teacher(teacher, sigma_min=0.002, sigma_max=80.0, refit_steps=0, generator=generator)
    assert not exact
    sign = -1 if prediction == "epsilon" else 1
    assert torch.equal(model.network.conv_out.weight, sign * teacher.network.conv_out.weight)
    assert torch.equal(model.network.conv_in.weight, teacher.network.conv_in.weight)


def test_channels_of_a_learned_variance_are_left_out():
    teacher = variant(out_channels=2)
    model = convert(teacher, 0).eval()
    assert model.network.config["out_channels"] == model.network.conv_out.out_channels == 1
    assert torch.equal(model.network.conv_out.weight, -teacher.network.conv_out.weight[:1])
    assert teacher.network.conv_out.weight.shape[0] == 2
    assert model(images(), torch.full((16,), 2.0)).shape == (16, 1, 8, 8)


def test_every_family_has_a_way_to_a_student_but_a_student_itself(tiny_unet: Build):
    space = Space(shape=(1, 8, 8), sigma_min=0.01, sigma_max=50.0)
    teacher = Preconditioned(tiny_unet(), Consistency(), space)
    with pytest.raises(UserError, match=r"^teacher\.source: cannot be distilled: it is a student already"):
        check_convertible(teacher, 50.0)
    assert {kind.name for kind in FOLDS} == {*FOLDED, *REGRESSED}


class HalfRight:
    """D halfway between a shrinkage and the truth, and off by error*s as an epsilon network's is."""

    space = Space(shape=(1, 8, 8), sigma_min=0.01, sigma_max=100.0)

    def __init__(self, truth: Tensor, variance: float, error: float) -> None:
        self.truth, self.variance, self.error = truth, variance, error

    def __call__(self, x: Tensor, sigma: Tensor | float, condition: Condition = NONE) -> Tensor:
        s = one_each(sigma, x).reshape(-1, 1, 1, 1)
        return 0.5 * (self.variance * x / (self.variance + s**2)) + 0.5 * self.truth + self.error * s


def test_a_teacher_is_trusted_where_it_denoises_better_than_a_shrinkage():
    x_0 = 0.5 * torch.randn((256, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    teacher = HalfRight(x_0, 0.25, 0.1)
    low, high = trusted_range(teacher, x_0, torch.Generator().manual_seed(4)) or (0.0, 0.0)
    # its squared error is e/4 + (0.1 s)^2, that of a shrinkage e = s^2 v/(s^2 + v): equal at s^2 = 74 v, s = 4.3
    assert low == pytest.approx(0.01)
    assert 2.5 < high < 4.5
    wrong = HalfRight(x_0, 0.25, 30.0)
    assert trusted_range(wrong, x_0, torch.Generator().manual_seed(4)) is None


def test_regression_has_the_teacher_as_target_where_it_is_trusted_and_clean_images_elsewhere(tiny_unet: Build):
    teacher, model = teacher_of(tiny_unet(seed=1), "epsilon"), ConsistencyModel(tiny_unet(seed=2))
    batch = Batch(images=images(64))

    def loss(trusted: tuple[float, float] | None, given: Any = teacher) -> tuple[Tensor, Tensor]:
        terms = Regression(model, given, trusted)(batch, PROGRESS, torch.Generator().manual_seed(5))
        return terms.loss, terms.sigma

    everywhere, sigma = loss((0.0, math.inf))
    nowhere, _ = loss(None)
    partly, _ = loss((0.1, 2.0))
    inside = (sigma >= 0.1) & (sigma <= 2.0)
    assert 0 < int(inside.sum()) < 64
    assert torch.equal(partly[inside], everywhere[inside])
    assert torch.equal(partly[~inside], nowhere[~inside])
    assert not torch.isclose(everywhere, nowhere).any()
    itself, _ = loss((0.0, math.inf), model)
    assert float(itself.detach().abs().max()) == 0.0  # at its fixed point


def test_regression_trains_the_student_and_not_the_teacher(tiny_unet: Build):
    teacher, model = teacher_of(tiny_unet(seed=1), "epsilon"), ConsistencyModel(tiny_unet(seed=2)).train()
    objective = Regression(model, teacher, (0.0, 3.0))
    assert {id(p) for p in objective.parameters()} == {id(p) for p in model.parameters()}
    objective(Batch(images=images(8)), PROGRESS, torch.Generator().manual_seed(0)).loss.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_conversion_is_judged_at_noise_levels_that_both_have(teacher: Any):
    model = convert(teacher, 0)
    sigmas = judged_sigmas(model, teacher)
    assert len(sigmas) == 8
    assert sigmas == sorted(sigmas)
    assert sigmas[0] == pytest.approx(teacher.space.sigma_min, rel=1e-3)
    assert sigmas[0] >= teacher.space.sigma_min > model.space.sigma_min
    assert sigmas[-1] == pytest.approx(80.0)


@pytest.mark.parametrize("schedule", ["linear", "sigmoid", "scaled_linear", "squaredcos_cap_v2"])
def test_sigma_max_above_the_teachers_is_refused_and_the_advice_holds(tiny_unet: Build, schedule: Any):
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type="v_prediction")
    teacher = ddpm_model(tiny_unet(), scheduler)
    with pytest.raises(UserError, match=r"^student\.sigma_max: .*give at most [\d.]+$") as caught:
        check_convertible(teacher, teacher.space.sigma_max * 1.001)
    advice = re.search(r"give at most ([\d.]+)$", str(caught.value))
    assert advice
    assert float(advice[1]) == pytest.approx(teacher.space.sigma_max, abs=0.011)
    check_convertible(teacher, float(advice[1]))


def variant(**options: Any) -> Any:
    return teacher_of(UNet2DModel(**(UNET | options)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time_embedding_type": "fourier"}, "its time embedding is fourier; positional is needed"),
        ({"out_channels": 3}, "it needs as many output channels as input channels"),
        ({"center_input_sample": True}, "it centres its input"),
        ({"sample_size": (8, 16)}, "only square images are supported"),
    ],
)
def test_networks_that_the_stock_pipeline_cannot_run_are_refused(options: dict[str, Any], expected: str):
    with pytest.raises(UserError, match=rf"^teacher\.source: .*{expected}") as caught:
        convert(variant(**options), 0)
    assert "\n" not in str(caught.value)
    check_convertible(variant(), 80.0)
