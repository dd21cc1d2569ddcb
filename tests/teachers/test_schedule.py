"""The sigma table, its inverse and the Karras grid."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from fewstep.teachers.schedule import karras_sigmas, timestep_of_sigma, vp_sigmas

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("options", "smallest", "largest"),
    [
        ({"beta_schedule": "linear"}, 0.0100005, 157.407),
        ({"beta_schedule": "squaredcos_cap_v2"}, 0.00643, 20291),
        ({"beta_schedule": "sigmoid"}, 0.0122, 158.7),
        (STABLE_DIFFUSION, 0.0292, 14.61),
    ],
)
def test_table_spans_the_published_noise_levels(options: dict[str, Any], smallest: float, largest: float):
    sigmas = vp_sigmas(DDPMScheduler(**options).alphas_cumprod)
    assert sigmas.dtype == torch.float64
    assert (sigmas.diff() > 0).all()
    assert float(sigmas[0]) == pytest.approx(smallest, rel=2e-3)
    assert float(sigmas[-1]) == pytest.approx(largest, rel=5e-4)


def test_linear_table_to_the_printed_digits():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # the stock table is float32: 8e-5 off at t = 0
    sigmas = vp_sigmas((1 - betas).cumprod(0))
    assert float(sigmas[0]) == pytest.approx(0.0100005, abs=5e-8)
    assert float(sigmas[-1]) == pytest.approx(157.407, abs=5e-4)


def test_timestep_inverts_the_table_and_is_linear_in_log_sigma():
    sigmas = vp_sigmas(DDPMScheduler().alphas_cumprod)
    steps = torch.arange(len(sigmas), dtype=torch.float64)
    torch.testing.assert_close(timestep_of_sigma(sigmas, sigmas), steps, atol=1e-9, rtol=0)
    between = (0.75 * sigmas[:-1].log() + 0.25 * sigmas[1:].log()).exp()
    torch.testing.assert_close(timestep_of_sigma(between, sigmas), steps[:-1] + 0.25, atol=1e-8, rtol=0)


def test_timestep_is_clamped_and_keeps_the_type():
    sigmas = vp_sigmas(DDPMScheduler().alphas_cumprod)
    timestep = timestep_of_sigma(torch.tensor([1e-6, 0.002, 158.0, 1e9]), sigmas)
    assert timestep.dtype == torch.float32
    assert timestep.tolist() == [0.0, 0.0, 999.0, 999.0]


def test_karras_grid_ends_and_formula():
    grid = karras_sigmas(18, 0.002, 80.0)
    assert grid.shape == (18,)
    assert (grid.diff() < 0).all()
    assert float(grid[0]) == pytest.approx(80.0, rel=1e-12)
    assert float(grid[-1]) == pytest.approx(0.002, rel=1e-12)
    expected = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(grid[5]) == pytest.approx(expected, rel=1e-12)
    assert karras_sigmas(3, 1.0, 9.0, rho=1.0).tolist() == pytest.approx([9, 5, 1])
