"""The stock scheduler's grid, solved so that its default two-step call lands on a chosen noise level."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from diffusers import CMStochasticIterativeScheduler


@dataclass(frozen=True, kw_only=True)
class StepGrid:
    """`num_train_timesteps` and `rho` of a CMStochasticIterativeScheduler, both legal in its stored config.

    With 8k + 1 points, 1, 2, 4 and 8 steps divide the grid and use the same levels whatever k is, two steps its
    middle. Points are counted from 0, sigma_max, to num_train_timesteps - 1, sigma_min. `chosen` holds, by number of
    steps, points in place of the default call's: descending to 0, as the stock pipeline's `timesteps=` takes them.
    """

    num_train_timesteps: int = 9
    rho: float = 7.0
    chosen: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def scheduler(self, sigma_min: float, sigma_max: float, sigma_data: float = 1.0) -> CMStochasticIterativeScheduler:
        """The stock scheduler of this grid."""
        return CMStochasticIterativeScheduler(
            num_train_timesteps=self.num_train_timesteps,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
            rho=self.rho,
        )

    def points(self, steps: int) -> list[int]:
        """The points of a call with `steps` steps, descending to 0: the chosen ones, or the stock scheduler's own."""
        if not 1 <= steps < self.num_train_timesteps:
            raise ValueError(f"steps {steps}: must be from 1 to {self.num_train_timesteps - 1}")
        apart = self.num_train_timesteps // steps
        return list(self.chosen.get(steps, range((steps - 1) * apart, -1, -apart)))

    def at(self, points: Sequence[int], sigma_min: float, sigma_max: float) -> list[float]:
        """The noise levels of points that descend to 0, in the order of sampling: descending from sigma_max."""
        scheduler = self.scheduler(sigma_min, sigma_max)
        scheduler.set_timesteps(timesteps=list(points), device=torch.device("cpu"))
        return scheduler.sigmas[:-1].tolist()

    def sigmas(self, steps: int, sigma_min: float, sigma_max: float) -> list[float]:
        """The noise levels of `steps` steps, descending from sigma_max."""
        return self.at(self.points(steps), sigma_min, sigma_max)

    def nearest(self, sigma: float, sigma_min: float, sigma_max: float) -> int:
        """The point whose noise level is nearest to `sigma` by ratio."""
        return int((self.scheduler(sigma_min, sigma_max).sigmas.log() - math.log(sigma)).abs().argmin())

    def down_to(self, lowest: float, sigma_min: float, sigma_max: float) -> "StepGrid":
        """This grid with points chosen for 4 and 8 steps where their own go below the noise level `lowest`.

        They are equally far apart, the last at the lowest level, which the two-step level must not be below: so half of
        the points, or more, are above it.
        """
        chosen, lowest = dict(self.chosen), lowest / (1 + 1e-4)  # solved for the level itself, a grid is near it
        last = int((self.scheduler(sigma_min, sigma_max).sigmas >= lowest).sum()) - 1
        for steps in (4, 8):
            if steps < self.num_train_timesteps and self.sigmas(steps, sigma_min, sigma_max)[-1] < lowest:
                chosen[steps] = [last * index // (steps - 1) for index in reversed(range(steps))]
        return replace(self, chosen=chosen)


def solve_grid(sigma: float, sigma_min: float, sigma_max: float) -> StepGrid:
    """The grid whose two-step call uses `sigma`: of 129 points where its middle can reach it, else of 8, 6 or 4.

    129 points are fine enough for any choice of levels; 8 and 6 still have four steps. With N points the two-step
    call uses the ramp (N // 2) / (N - 1). The point at a ramp of u lies at
    (smax^(1/rho) + u*(smin^(1/rho) - smax^(1/rho)))^rho, which falls as rho grows, from near the arithmetic mean
    towards smax^(1-u)*smin^u; rho is found by bisection.
    """
    for num in (129, 8, 6, 4):
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
