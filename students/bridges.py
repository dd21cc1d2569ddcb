"""How x_t goes to x_r: along the data, or along the teacher's ODE."""

from typing import Protocol

import torch
from torch import Tensor

from fewstep.teachers.interfaces import NONE, Condition, Denoiser, per_image
from fewstep.teachers.solvers import ode_slope


class Bridge(Protocol):
    """From (x_0, eps [B,C,H,W], t, r [B]) to x_r [B,C,H,W]."""

    def __call__(self, x_0: Tensor, eps: Tensor, t: Tensor, r: Tensor, condition: Condition = NONE) -> Tensor: ...


def data_bridge(x_0: Tensor, eps: Tensor, t: Tensor, r: Tensor, condition: Condition = NONE) -> Tensor:
    """x_r = x_0 + r*eps with the same eps as x_t (Song 2023, algorithm 3); needs no teacher."""
    return x_0 + per_image(r) * eps


def euler_bridge(teacher: Denoiser) -> Bridge:
    """One Euler step of the teacher's ODE from t to r."""

    def bridge(x_0: Tensor, eps: Tensor, t: Tensor, r: Tensor, condition: Condition = NONE) -> Tensor:
        with torch.no_grad():
            x_t = x_0 + per_image(t) * eps
            return x_t + per_image(r - t) * ode_slope(teacher, x_t, t, condition)

    return bridge


def heun_bridge(teacher: Denoiser) -> Bridge:
    """One Heun step of the teacher's ODE from t to r: two evaluations (Song 2023, algorithm 2)."""

    def bridge(x_0: Tensor, eps: Tensor, t: Tensor, r: Tensor, condition: Condition = NONE) -> Tensor:
        with torch.no_grad():
            x_t = x_0 + per_image(t) * eps
            slope = ode_slope(teacher, x_t, t, condition)
            slope_r = ode_slope(teacher, x_t + per_image(r - t) * slope, r, condition)
            return x_t + per_image(r - t) * (slope + slope_r) / 2

    return bridge
