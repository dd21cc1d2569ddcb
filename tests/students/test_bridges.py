"""Bridges on Gaussian data, against the factors of one step in closed form."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.students.bridges import data_bridge, euler_bridge, heun_bridge
from fewstep.teachers.interfaces import Denoiser

MEAN, VARIANCE = 0.3, 0.25
STEPS = [(80.0, 57.6), (2.5, 2.4), (0.5, 0.1), (0.05, 0.002)]


def euler_factor(t: float, r: float, v: float = VARIANCE) -> float:
    return 1 + (r - t) * t / (v + t**2)


def heun_factor(t: float, r: float, v: float = VARIANCE) -> float:
    return 1 + (r - t) / 2 * (t / (v + t**2) + (1 + (r - t) * t / (v + t**2)) * r / (v + r**2))


def pieces(t: float, r: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn((5, 1, 4, 4), generator=generator, dtype=dtype) for _ in range(2))
    return MEAN + VARIANCE**0.5 * x_0, eps, torch.full((5,), t, dtype=dtype), torch.full((5,), r, dtype=dtype)


@pytest.mark.parametrize(("t", "r"), STEPS)
@pytest.mark.parametrize(("bridge", "factor"), [(euler_bridge, euler_factor), (heun_bridge, heun_factor)])
def test_one_step_multiplies_the_distance_from_the_mean(gaussian: Any, bridge: Any, factor: Any, t: float, r: float):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        x_0, eps, t_, r_ = pieces(t, r, dtype)
        x_r = bridge(gaussian(MEAN, VARIANCE))(x_0, eps, t_, r_)
        expected = MEAN + (x_0 + t * eps - MEAN) * factor(t, r)
        scale = float((x_0 + t * eps).abs().max())
        torch.testing.assert_close(x_r, expected, atol=tolerance * max(scale, 1.0), rtol=0)


def test_data_bridge_keeps_the_noise():
    x_0, eps, t, r = pieces(2.0, 0.7, torch.float64)
    assert torch.equal(data_bridge(x_0, eps, t, r), x_0 + 0.7 * eps)


@pytest.mark.parametrize(("t", "r"), STEPS)
def test_data_bridge_is_euler_in_expectation(t: float, r: float):
    """E[x_r - m | x_t] = e*(x_t - m): the slope of the regression, within 5 standard errors (error rate 6e-7)."""
    generator = torch.Generator().manual_seed(1)
    num = 200_000
    x_0, eps = (torch.randn((num, 1, 1, 1), generator=generator, dtype=torch.float64) for _ in range(2))
    x_0 = MEAN + VARIANCE**0.5 * x_0
    t_, r_ = (torch.full((num,), s, dtype=torch.float64) for s in (t, r))
    x_r = data_bridge(x_0, eps, t_, r_) - MEAN
    x_t = x_0 + t * eps - MEAN
    slope = float((x_r * x_t).sum() / (x_t * x_t).sum())
    error = float((x_r - slope * x_t).std() / (x_t.std() * num**0.5))
    assert error < 0.002
    assert abs(slope - euler_factor(t, r)) < 5 * error


@pytest.mark.parametrize("bridge", [euler_bridge, heun_bridge])
def test_no_gradient_passes_through_a_teacher(gaussian: Any, bridge: Any):
    teacher: Denoiser = gaussian(MEAN, VARIANCE)
    x_0, eps, t, r = pieces(2.0, 0.7, torch.float32)
    assert not bridge(teacher)(x_0.requires_grad_(), eps, t, r).requires_grad


def test_each_image_has_its_own_noise_levels(gaussian: Any):
    x_0, eps, _, _ = pieces(1.0, 0.5, torch.float64)
    t, r = torch.tensor([3.0, 1.0, 0.5, 20.0, 0.1]).double(), torch.tensor([1.0, 0.9, 0.1, 2.0, 0.05]).double()
    together = heun_bridge(gaussian(MEAN, VARIANCE))(x_0, eps, t, r)
    for i in range(5):
        x_, eps_, t_, r_ = (value[i : i + 1] for value in (x_0, eps, t, r))
        one = heun_bridge(gaussian(MEAN, VARIANCE))(x_, eps_, t_, r_)
        torch.testing.assert_close(together[i : i + 1], one)
