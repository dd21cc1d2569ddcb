"""Sampling from a teacher: stock DDPM's images, where DDIM and DPM-Solver++ start and end, Heun's order."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from fewstep.teachers.denoiser import PREDICTIONS, VPDenoiser
from fewstep.teachers.solvers import (
    ddim_scheduler,
    dpmsolver_scheduler,
    heun_sigmas,
    sample_ddpm,
    sample_heun,
    sample_scheduler,
    unipc_scheduler,
)

# diffusers hands torch tensors to numpy.array, which NumPy 2 answers with a warning of its own
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

Build = Callable[..., UNet2DModel]
Draws = Callable[[int], Callable[[], Tensor]]


def teacher_of(unet: UNet2DModel, **options: Any) -> VPDenoiser:
    return VPDenoiser(unet.eval().requires_grad_(False), DDPMScheduler(**options))


@pytest.mark.parametrize(
    "options",
    [{"prediction_type": prediction} for prediction in PREDICTIONS]
    + [
        {"prediction_type": "epsilon", "clip_sample": False},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
)
def test_ddpm_gives_the_images_of_the_stock_pipeline(tiny_unet: Build, draws: Draws, options: dict[str, Any]):
    if "timestep_spacing" in options:  # zero SNR is reached at the last timestep: take every one of a short schedule
        options = options | {"num_train_timesteps": 20}
    teacher = teacher_of(tiny_unet(), **options)
    pipeline = DDPMPipeline(unet=teacher.unet, scheduler=teacher.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(index) for index in range(3)]
    stock: Any = pipeline(batch_size=3, generator=generators, num_inference_steps=20, output_type="np")
    ours = sample_ddpm(teacher, 20, draws(3))
    assert torch.isfinite(ours).all()
    expected = torch.from_numpy(stock.images).permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 10, 20, 50])
def test_every_scheduler_starts_at_pure_noise_and_ends_at_sigma_zero(tiny_unet: Build, steps: int):
    teacher = teacher_of(tiny_unet(), prediction_type="v_prediction")
    ddim, dpm, unipc = (make(teacher, steps) for make in (ddim_scheduler, dpmsolver_scheduler, unipc_scheduler))
    for scheduler in (ddim, dpm, unipc):
        assert len(scheduler.timesteps) == steps
        assert int(scheduler.timesteps[0]) == 999
        assert scheduler.config["prediction_type"] == "v_prediction"
    assert float(ddim.final_alpha_cumprod) == 1.0
    for multistep in (dpm, unipc):
        assert float(multistep.sigmas[-1]) == 0.0
        assert float(multistep.sigmas[0]) == pytest.approx(teacher.sigma_max, rel=1e-4)


def test_one_ddim_step_is_the_denoiser_at_the_largest_noise(tiny_unet: Build, draws: Draws):
    teacher = teacher_of(tiny_unet(), prediction_type="v_prediction")
    ours = sample_scheduler(teacher, ddim_scheduler(teacher, 1), draws(2))
    sigma = torch.full((2,), teacher.sigma_max)
    x = draws(2)() * (1 + teacher.sigma_max**2) ** 0.5
    torch.testing.assert_close(ours, teacher.denoise(x, sigma).clamp(-1, 1), atol=2e-5, rtol=0)


def test_deterministic_solvers_draw_once_and_keep_nothing_between_calls(tiny_unet: Build, draws: Draws):
    teacher = teacher_of(tiny_unet(), prediction_type="v_prediction")
    for scheduler in (ddim_scheduler(teacher, 5), dpmsolver_scheduler(teacher, 5), unipc_scheduler(teacher, 5)):
        calls = []

        def draw(calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return draws(2)()

        first, second = (sample_scheduler(teacher, scheduler, draw) for _ in range(2))
        assert torch.equal(first, second)
        assert len(calls) == 2
        assert first.abs().max() <= 1


def test_solvers_agree_when_their_steps_are_many(tiny_unet: Build, draws: Draws):
    teacher = teacher_of(tiny_unet(), prediction_type="v_prediction", clip_sample=False)
    ddim = sample_scheduler(teacher, ddim_scheduler(teacher, 100), draws(2))
    for make in (dpmsolver_scheduler, unipc_scheduler):
        assert (ddim - sample_scheduler(teacher, make(teacher, 25), draws(2))).abs().mean() < 0.02


def test_heun_covers_the_teachers_range(tiny_unet: Build):
    teacher = teacher_of(tiny_unet(), prediction_type="v_prediction")
    grid = heun_sigmas(teacher, 18).tolist()
    assert grid[0] == pytest.approx(80.0)
    assert grid[-1] == pytest.approx(teacher.sigma_min)


def test_heun_converges_with_order_two_on_gaussian_data(gaussian: Any):
    mean, variance = 0.2, 0.04
    teacher = gaussian(mean, variance)
    # five-sigma noise would leave [-1, 1]; these points do not, so the clamp has no part in the error
    noise = torch.linspace(-2.5, 2.5, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    s_min, s_max = teacher.sigma_min, teacher.sigma_max
    # the exact flow to sigma_min, and the last step, Euler to 0, as the solver takes it
    flow = math.sqrt((variance + s_min**2) / (variance + s_max**2))
    exact = mean + (s_max * noise - mean) * flow * variance / (variance + s_min**2)
    errors = [float((sample_heun(teacher, steps, lambda: noise) - exact).abs().max()) for steps in (40, 80, 160)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([2.0, 2.0], abs=0.2)
    assert errors[-1] < 1e-3
