"""Sampling from a denoiser: the images of the stock pipelines, Heun's order, and models without a schedule."""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from fewstep.teachers.interfaces import Space
from fewstep.teachers.load import PREDICTIONS, ddpm_model
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM
from fewstep.teachers.solvers import SOLVERS

# diffusers hands torch tensors to numpy.array, which NumPy 2 answers with a warning of its own
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

Build = Callable[..., UNet2DModel]
Draws = Callable[[int], Callable[[], Tensor]]
THRESHOLDED = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}
STEPPED = ["ddim", "dpmsolver++", "unipc"]


def teacher_of(unet: UNet2DModel, **options: Any) -> tuple[Preconditioned, DDPMPipeline]:
    """A teacher and the stock pipeline of the same network and schedule."""
    scheduler = DDPMScheduler(**options)
    pipeline = DDPMPipeline(unet=unet.eval().requires_grad_(False), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return ddpm_model(unet, scheduler), pipeline


def sampled(name: str, teacher: Any, steps: int, draw: Callable[[], Tensor]) -> Tensor:
    return SOLVERS[name].plan(teacher.space, steps).sample(teacher, draw)


@pytest.mark.parametrize(
    "options",
    [{"prediction_type": prediction} for prediction in PREDICTIONS]
    + [
        {"prediction_type": "epsilon", "beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "epsilon", "clip_sample": False},
        {"prediction_type": "epsilon", **THRESHOLDED},
        {"prediction_type": "sample", "thresholding": True, "clip_sample": False},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
)
def test_ddpm_gives_the_images_of_the_stock_pipeline(tiny_unet: Build, draws: Draws, options: dict[str, Any]):
    if "timestep_spacing" in options:  # zero SNR is reached at the last timestep: take every one of a short schedule
        options = options | {"num_train_timesteps": 20}
    teacher, pipeline = teacher_of(tiny_unet(), **options)
    generators = [torch.Generator("cpu").manual_seed(index) for index in range(3)]
    stock: Any = pipeline(batch_size=3, generator=generators, num_inference_steps=20, output_type="np")
    ours = sampled("ddpm", teacher, 20, draws(3))
    assert torch.isfinite(ours).all()
    expected = torch.from_numpy(stock.images).permute(0, 3, 1, 2) * 2 - 1
    torch.testing.assert_close(ours.clamp(-1, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("options", [
    *({"prediction_type": prediction} for prediction in PREDICTIONS),
    {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
])  # fmt: skip
def test_schedulers_of_diffusers_give_the_images_of_their_own_stepping(
    tiny_unet: Build, draws: Draws, name: str, options: dict[str, Any]
):
    """Fed with x0 in sigma by us, with the network's own output by the stock loop, from the same noise.

    Without clipping: that of large noise levels is ours.
    """
    teacher, pipeline = teacher_of(tiny_unet(), clip_sample=False, **options)
    solver = SOLVERS[name]
    scheduler: Any = solver.stock.from_config(pipeline.scheduler.config, timestep_spacing="trailing", **solver.options)
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 999
    x = draws(2)() * scheduler.init_noise_sigma
    with torch.inference_mode():
        for t in scheduler.timesteps:
            output = pipeline.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, return_dict=False)[0]
    ours = sampled(name, teacher, 10, draws(2))
    # zero SNR: those two schedulers stand in with another last level, 4096, than our 2**20
    atol = 1e-3 if options.get("rescale_betas_zero_snr") and name != "ddim" else 1e-5
    if options == {"prediction_type": "epsilon"} and name == "ddim":
        atol = 5e-5  # float32: the rounding of an epsilon output, 6e-8, is multiplied by sigma = 157 here and there
    torch.testing.assert_close(ours, x, atol=atol * max(1.0, float(x.abs().max())), rtol=0)


def test_a_threshold_is_of_each_image_alone_and_divides_by_its_bound():
    space = Space(shape=(1, 2, 5), sigma_min=0.1, sigma_max=80.0, threshold=(0.5, 3.0))
    small, middle, large = torch.linspace(-0.9, 0.9, 10), torch.full((10,), 2.0), torch.full((10,), -9.0)
    middle[0] = 7.0
    held = space.clamped(torch.stack([small, middle, large]).reshape(3, 1, 2, 5)).flatten(1)
    assert torch.equal(held[0], small)
    assert torch.equal(held[1], torch.ones(10))
    assert torch.equal(held[2], -torch.ones(10))
    assert torch.equal(space.clamped(held.reshape(3, 1, 2, 5)).flatten(1), held)


@pytest.mark.parametrize("name", [*STEPPED, "heun"])
def test_every_solver_holds_images_to_a_threshold(tiny_unet: Build, draws: Draws, name: str):
    teacher, _ = teacher_of(tiny_unet(), prediction_type="epsilon", **THRESHOLDED)
    ours = sampled(name, teacher, 10, draws(2))
    assert ours.isfinite().all()
    assert float(ours.abs().max()) <= 1


@pytest.mark.parametrize("name", STEPPED)
def test_one_step_is_the_denoiser_at_the_largest_noise(tiny_unet: Build, draws: Draws, name: str):
    teacher, _ = teacher_of(tiny_unet(), prediction_type="v_prediction")
    top = teacher.space.sigma_max
    x = draws(2)() * (1 + top**2) ** 0.5
    expected = teacher(x, torch.full((2,), top)).clamp(-1, 1)
    torch.testing.assert_close(sampled(name, teacher, 1, draws(2)), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [*STEPPED, "heun"])
def test_deterministic_solvers_draw_once_and_keep_nothing_between_calls(tiny_unet: Build, draws: Draws, name: str):
    teacher, _ = teacher_of(tiny_unet(), prediction_type="v_prediction")
    plan, calls = SOLVERS[name].plan(teacher.space, 5), []

    def draw() -> Tensor:
        calls.append(1)
        return draws(2)()

    first, second = (plan.sample(teacher, draw) for _ in range(2))
    assert torch.equal(first, second)
    assert len(calls) == 2
    assert first.abs().max() <= 1


@pytest.mark.parametrize("name", SOLVERS)
def test_a_plan_says_the_evaluations_that_are_made(tiny_unet: Build, draws: Draws, name: str):
    teacher, _ = teacher_of(tiny_unet(), prediction_type="v_prediction")
    calls = []
    teacher.register_forward_pre_hook(lambda *given: calls.append(1))
    plan = SOLVERS[name].plan(teacher.space, 7)
    plan.sample(teacher, draws(1))
    assert len(calls) == plan.nfe == (13 if name == "heun" else 7)
    assert len(plan.schedule) == 7


@pytest.mark.parametrize("name", SOLVERS)
def test_a_model_without_a_schedule_is_sampled_over_its_own_range(gaussian: Any, name: str):
    """The exact denoiser of N(m, v): images have that mean and spread (48,000 pixels: 5 standard errors, 6e-7)."""
    mean, variance = 0.1, 0.04
    images = sampled(name, gaussian(mean, variance), 200, _normal(3000))
    error = (variance / images.numel()) ** 0.5
    assert abs(float(images.mean()) - mean) < 5 * error + 2e-3
    assert float(images.var()) == pytest.approx(variance, rel=0.06)  # DDPM's 200 steps lose 5 %


def _normal(num: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn((num, 1, 4, 4), generator=generator)


def test_solvers_agree_when_their_steps_are_many(tiny_unet: Build, draws: Draws):
    teacher, _ = teacher_of(tiny_unet(), prediction_type="v_prediction", clip_sample=False)
    ddim = sampled("ddim", teacher, 100, draws(2)).clamp(-1, 1)
    for name in ("dpmsolver++", "unipc"):
        assert (ddim - sampled(name, teacher, 25, draws(2)).clamp(-1, 1)).abs().mean() < 0.02


def test_estimates_are_held_to_the_range_of_the_space(draws: Draws):
    space = Space(shape=(1, 8, 8), sigma_min=0.01, sigma_max=80.0)

    class Large(torch.nn.Module):
        def forward(self, x: Tensor, timestep: Tensor) -> Any:
            return SimpleNamespace(sample=torch.full_like(x, 1e3))

    for name in SOLVERS:
        assert sampled(name, Preconditioned(Large(), EDM(), space), 4, draws(2)).abs().max() <= 1


def test_heun_covers_the_teachers_range(tiny_unet: Build):
    teacher, _ = teacher_of(tiny_unet(), prediction_type="v_prediction")
    grid = SOLVERS["heun"].plan(teacher.space, 18).schedule
    assert grid[0] == pytest.approx(80.0)
    assert grid[-1] == pytest.approx(teacher.space.sigma_min)


def test_heun_converges_with_order_two_on_gaussian_data(gaussian: Any):
    mean, variance = 0.2, 0.04
    teacher = gaussian(mean, variance)
    # five-sigma noise would leave [-1, 1]; these points do not, so the clamp has no part in the error
    noise = torch.linspace(-2.5, 2.5, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    s_min, s_max = teacher.space.sigma_min, teacher.space.sigma_max
    # the exact flow to sigma_min, and the last step, Euler to 0, as the solver takes it
    flow = math.sqrt((variance + s_min**2) / (variance + s_max**2))
    exact = mean + (s_max * noise - mean) * flow * variance / (variance + s_min**2)
    errors = [float((sampled("heun", teacher, steps, lambda: noise) - exact).abs().max()) for steps in (40, 80, 160)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([2.0, 2.0], abs=0.2)
    assert errors[-1] < 1e-3
