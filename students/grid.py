"""The stock scheduler's grid, solved so that its default two-step call lands on a chosen noise level."""

from dataclasses import dataclass

import torch
from diffusers import CMStochasticIterativeScheduler


@dataclass(frozen=True, kw_only=True)
class StepGrid:
    """`num_train_timesteps` and `rho` of a CMStochasticIterativeScheduler, both legal in its stored config.

    With 9 points, 1, 2, 4 and 8 steps divide the grid and the two-step call uses its middle.
    """

    num_train_timesteps: int = 9
    rho: float = 7.0

    def scheduler(self, sigma_min: float, sigma_max: float, sigma_data: float = 1.0) -> CMStochasticIterativeScheduler:
        """The stock scheduler of this grid."""
        return CMStochasticIterativeScheduler(
            num_train_timesteps=self.num_train_timesteps,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
            rho=self.rho,
        )

    def sigmas(self, steps: int, sigma_min: float, sigma_max: float) -> list[float]:
        """The noise levels that the stock scheduler uses for `steps` steps, descending from sigma_max."""
        if not 1 <= steps < self.num_train_timesteps:
            raise ValueError(f"steps {steps}: must be from 1 to {self.num_train_timesteps - 1}")
        scheduler = self.scheduler(sigma_min, sigma_max)
        scheduler.set_timesteps(steps, device=torch.device("cpu"))
        return scheduler.sigmas[:-1].tolist()


def solve_grid(sigma: float, sigma_min: float, sigma_max: float) -> StepGrid:
    """The grid whose two-step call uses `sigma`: of 9 points where its middle can reach it, else of 8, 6 or 4.

    8 and 6 points still have four steps. With N points the two-step call uses the ramp (N // 2) / (N - 1).
    The point at a ramp of u lies at (smax^(1/rho) + u*(smin^(1/rho) - smax^(1/rho)))^rho, which falls as rho
    grows, from near the arithmetic mean towards smax^(1-u)*smin^u; rho is found by bisection.
    """
    for num in (9, 8, 6, 4):
        ramp, low, high = (num // 2) / (num - 1), 1.0, 2000.0
        if not _point(high, ramp, sigma_min, sigma_max) <= sigma <= _point(low, ramp, sigma_min, sigma_max):
            continue
        for _ in range(200):
            middle = (low * high) ** 0.5
            if _point(middle, ramp, sigma_min, sigma_max) > sigma:
                low = middle
            else:
                high = middle
        return StepGrid(num_train_timesteps=num, rho=(low * high) ** 0.5)
    raise ValueError(f"no grid between {sigma_min} and {sigma_max} has its two-step point at {sigma}")


def _point(rho: float, ramp: float, sigma_min: float, sigma_max: float) -> float:
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho
