"""A teacher's own trajectories: points of its probability-flow ODE, from noise to an image."""

import math

import torch
from torch import Tensor

from fewstep.teachers.interfaces import NONE, Condition, Denoiser
from fewstep.teachers.solvers import estimate


def trajectory_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """`steps` + 1 noise levels from sigma_max to sigma_min in equal steps of ln sigma, float64."""
    sigmas = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps + 1, dtype=torch.float64).exp()
    sigmas[0], sigmas[-1] = sigma_max, sigma_min  # to the last digit
    return sigmas


@torch.inference_mode()
def trajectory(denoiser: Denoiser, sigmas: Tensor, noise: Tensor, condition: Condition = NONE) -> Tensor:
    """Points [B, len(sigmas), C, H, W] at descending `sigmas`, from sigmas[0]*noise [B,C,H,W]; the last is an image.

    DPM-Solver++(2M) (Lu 2022, algorithm 2) with lambda = -ln sigma; its first and last step are of first order.
    """
    x = noise * float(sigmas[0])
    points, before, h_before = [x], None, 1.0
    for index in range(len(sigmas) - 1):
        sigma, sigma_next = float(sigmas[index]), float(sigmas[index + 1])
        h = math.log(sigma / sigma_next)
        x_0 = estimate(denoiser, x, sigma, condition)
        slope = x_0
        if before is not None and index < len(sigmas) - 2:
            slope = x_0 + h / (2 * h_before) * (x_0 - before)
        x = sigma_next / sigma * x - math.expm1(-h) * slope
        before, h_before = x_0, h
        points.append(x)
    return torch.stack(points, dim=1)
