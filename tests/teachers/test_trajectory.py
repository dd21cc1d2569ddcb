"""A teacher's trajectories: diffusers' solver step by step, the exact map's order, and their ends to the last digit."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from fewstep.teachers.interfaces import NONE, Condition, Space, one_each
from fewstep.teachers.schedule import karras_sigmas
from fewstep.teachers.trajectory import trajectory, trajectory_sigmas

# diffusers hands torch tensors to numpy.array, which NumPy 2 answers with a warning of its own
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
# within what the clamp of estimates above sigma = 1 leaves alone
NOISE = torch.linspace(-2.5, 2.5, 16, dtype=torch.float64).reshape(1, 1, 4, 4)


class Curved:
    """A denoiser that is not linear."""

    space = Space(shape=(1, 4, 4), sigma_min=0.002, sigma_max=80.0)

    def __call__(self, x: Tensor, sigma: Tensor | float, condition: Condition = NONE) -> Tensor:
        s = one_each(sigma, x).to(x.dtype).reshape(-1, 1, 1, 1)
        return 0.9 * torch.tanh(x / (1 + s)) + 0.1 * torch.sin(x / (1 + s) + s.log())


@pytest.mark.parametrize(
    "sigmas", [*(trajectory_sigmas(steps, 0.002, 80.0) for steps in (2, 3, 16)), karras_sigmas(18, 0.002, 80.0)]
)
def test_every_point_is_that_of_diffusers(sigmas: Tensor):
    denoiser, steps = Curved(), len(sigmas) - 1
    points = trajectory(denoiser, sigmas, NOISE)
    scheduler: Any = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        euler_at_final=True,
        prediction_type="sample",
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas
    x = points[:, 0] / (1 + sigmas[0] ** 2).sqrt()  # VP terms
    for index, t in enumerate(scheduler.timesteps):
        sigma = sigmas[index]
        x_0 = denoiser(x * (1 + sigma**2).sqrt(), sigma.float().expand(1))
        x_0 = x_0.clamp(-1, 1) if sigma > 1 else x_0
        x = scheduler.step(x_0, t, x, return_dict=False)[0]
        expected = x * (1 + sigmas[index + 1] ** 2).sqrt()
        torch.testing.assert_close(points[:, index + 1], expected, rtol=1e-6, atol=1e-6)  # its own float32


def test_the_end_converges_to_the_exact_map_with_order_two(gaussian: Any):
    mean, variance, s_min, s_max = 0.2, 0.04, 0.002, 80.0
    exact = mean + (s_max * NOISE - mean) * math.sqrt((variance + s_min**2) / (variance + s_max**2))
    ends = [
        trajectory(gaussian(mean, variance), trajectory_sigmas(steps, s_min, s_max), NOISE)[:, -1]
        for steps in (40, 80, 160, 320)
    ]
    errors = [float((end - exact).abs().max()) for end in ends]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([2.0, 2.0, 2.0], abs=0.2)
    assert errors[-1] < 1e-3


def test_levels_go_from_end_to_end_in_equal_ratios():
    sigmas = trajectory_sigmas(7, 0.0123, 79.9)
    assert (float(sigmas[0]), float(sigmas[-1]), len(sigmas)) == (79.9, 0.0123, 8)
    ratios = sigmas[:-1] / sigmas[1:]
    torch.testing.assert_close(ratios, ratios[:1].expand(7))
    assert torch.equal(trajectory(Curved(), sigmas, NOISE)[:, 0], 79.9 * NOISE)
