"""Route A: a v-prediction teacher becomes a consistency model that computes the same."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.students.convert import check_convertible, conversion_error, convert_teacher
from fewstep.teachers.denoiser import VPDenoiser
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.schedule import timestep_of_sigma

Build = Callable[..., UNet2DModel]


def teacher_of(unet: UNet2DModel, prediction: Any = "v_prediction") -> VPDenoiser:
    return VPDenoiser(unet.eval().requires_grad_(False), build_scheduler(1000, "linear", prediction))


def convert(teacher: VPDenoiser, steps: int, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return convert_teacher(teacher, sigma_min=0.002, sigma_max=80.0, refit_steps=steps, generator=generator)


def images() -> Tensor:
    return torch.rand((16, 1, 8, 8), generator=torch.Generator().manual_seed(9)) * 2 - 1


@pytest.fixture(scope="module")
def teacher(tiny_unet: Build) -> VPDenoiser:
    return teacher_of(tiny_unet(seed=11))


class Reembedded(nn.Module):
    """A teacher's time projection, read through 250 ln sigma: what a perfect refit would compute."""

    def __init__(self, teacher: VPDenoiser) -> None:
        super().__init__()
        self.projection, self.sigmas = teacher.unet.time_proj, teacher.finite_sigmas

    def forward(self, timestep: Tensor) -> Tensor:
        return self.projection(timestep_of_sigma((timestep / 250).exp(), self.sigmas))


def test_but_for_the_time_embedding_the_student_is_the_teacher(teacher: VPDenoiser):
    model = convert(teacher, 0).eval()
    model.unet.time_proj = Reembedded(teacher)
    errors = conversion_error(model, teacher, images(), torch.Generator().manual_seed(1))
    # c_skip is moved by sigma_min, by 1.3e-3 at most, times pixels of the size of one
    assert max(errors.values()) < 2e-3, errors
    assert errors[10.0] < 5e-4
    assert errors[80.0] < 5e-4


def test_the_refit_brings_the_student_to_the_teacher(teacher: VPDenoiser):
    """A 16-channel network's embedding can be fitted only so far; 0.043 becomes 0.022 in 300 steps."""
    before = {key: value.clone() for key, value in teacher.unet.state_dict().items()}
    unfit, fit = (convert(teacher, steps).eval() for steps in (0, 300))
    wrong, errors = (conversion_error(m, teacher, images(), torch.Generator().manual_seed(1)) for m in (unfit, fit))
    assert max(errors.values()) < 0.03, errors
    assert max(errors.values()) < 0.7 * max(wrong.values())
    for key, value in teacher.unet.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_only_the_last_convolution_and_the_time_embedding_differ(teacher: VPDenoiser):
    model = convert(teacher, 2)
    old, new = teacher.unet.state_dict(), model.unet.state_dict()
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert {key.split(".")[0] for key in changed} == {"conv_out", "time_embedding"}
    assert torch.equal(new["conv_out.weight"], -old["conv_out.weight"])
    assert torch.equal(new["conv_out.bias"], -old["conv_out.bias"])


def test_the_student_is_ready_to_train_and_shares_nothing(teacher: VPDenoiser):
    model = convert(teacher, 1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.unet.parameters())
    shared = {p.data_ptr() for p in teacher.unet.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared


def test_conversion_is_a_function_of_the_generator(teacher: VPDenoiser):
    weights = [convert(teacher, 3, seed).unet.time_embedding.linear_1.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_other_predictions_are_refused(tiny_unet: Build, prediction: str):
    with pytest.raises(UserError, match=rf"^teacher\.prediction: '{prediction}': only v_prediction"):
        convert(teacher_of(tiny_unet(), prediction), 0)


@pytest.mark.parametrize("schedule", ["linear", "sigmoid", "scaled_linear", "squaredcos_cap_v2"])
def test_sigma_max_above_the_teachers_is_refused_and_the_advice_holds(tiny_unet: Build, schedule: Any):
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type="v_prediction")
    teacher = VPDenoiser(tiny_unet(), scheduler)
    with pytest.raises(UserError, match=r"^student\.sigma_max: .*give at most [\d.]+$") as caught:
        check_convertible(teacher, teacher.sigma_max * 1.001)
    advice = re.search(r"give at most ([\d.]+)$", str(caught.value))
    assert advice
    assert float(advice[1]) == pytest.approx(teacher.sigma_max, abs=0.011)
    check_convertible(teacher, float(advice[1]))


def variant(**options: Any) -> VPDenoiser:
    network: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 4,
    }
    return teacher_of(UNet2DModel(**(network | options)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time_embedding_type": "fourier"}, "'fourier': only positional"),
        ({"out_channels": 2}, r"\(1, 2\): a student needs out_channels == in_channels"),
        ({"center_input_sample": True}, "center_input_sample = false"),
        ({"sample_size": (8, 16)}, r"\(8, 16\): a student needs square images"),
    ],
)
def test_networks_that_the_stock_pipeline_cannot_run_are_refused(options: dict[str, Any], expected: str):
    with pytest.raises(UserError, match=rf"^teacher\.source: .*{expected}") as caught:
        convert(variant(**options), 0)
    assert "\n" not in str(caught.value)
    check_convertible(variant(), 80.0)
