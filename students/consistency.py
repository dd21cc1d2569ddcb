"""The consistency function f(x, sigma) = c_skip*x + c_out*F(c_in*x, 250 ln sigma), as stock diffusers computes it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel
from torch import Tensor

from fewstep.students.grid import StepGrid
from fewstep.students.interfaces import FixedStep, StockCall, Student
from fewstep.teachers.interfaces import NONE, Condition, Denoiser, Space
from fewstep.teachers.scaling import Consistency
from fewstep.teachers.solvers import Draw, Planned


class ConsistencyModel(Student):
    """A student: maps x = x0 + sigma*eps to an estimate of x0 in one evaluation; f(x, sigma_min) = x exactly.

    `sigma_min` and `sigma_max` are rounded to float32: with other values the stock scheduler's last step can take the
    root of a tiny negative number and every image is NaN. `grid` decides the noise levels of a call with 2, 4 or 8
    steps.
    """

    network: UNet2DModel
    scaling: Consistency

    def __init__(
        self,
        unet: UNet2DModel,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 1.0,
        grid: StepGrid | None = None,
    ) -> None:
        self.sigma_min, self.sigma_max = float(np.float32(sigma_min)), float(np.float32(sigma_max))
        size: int = unet.config["sample_size"]
        shape = (unet.config["in_channels"], size, size)
        classes = unet.config["num_class_embeds"]
        space = Space(shape=shape, sigma_min=self.sigma_min, sigma_max=self.sigma_max, num_classes=classes)
        super().__init__(unet, Consistency(self.sigma_min, sigma_data), space)
        self.grid = grid or StepGrid()

    def step_sigmas(self, steps: int) -> list[float]:
        """The noise levels of a call with `steps` steps, descending from sigma_max."""
        return self.grid.sigmas(steps, self.sigma_min, self.sigma_max)

    @property
    def most_steps(self) -> int:
        """See `Student`: those of the grid."""
        return self.grid.num_train_timesteps - 1

    def plan(self, steps: int) -> Planned:
        """See `Student`; the schedule is `step_sigmas`."""
        return plan_consistency(self.step_sigmas(steps))

    def fixed_steps(self, steps: int) -> list[FixedStep]:
        """See `Student`."""
        sigmas = self.step_sigmas(steps)
        factors = zip(*(values.tolist() for values in self.scaling(torch.tensor(sigmas))), strict=True)
        noises = [sigmas[0], *(math.sqrt(sigma**2 - self.sigma_min**2) for sigma in sigmas[1:])]
        return [
            FixedStep(noise=noise, scale=c_in, time=c_noise, skip=c_skip, out=c_out, clamped=True)
            for noise, (c_skip, c_out, c_in, c_noise) in zip(noises, factors, strict=True)
        ]

    def pipeline(self) -> ConsistencyModelPipeline:
        """See `Student`."""
        scheduler = self.grid.scheduler(self.sigma_min, self.sigma_max, self.scaling.sigma_data)
        assert scheduler.config["sigma_min"] == float(np.float32(scheduler.config["sigma_min"]))
        return ConsistencyModelPipeline(unet=self.clone().network.cpu().float().eval(), scheduler=scheduler)

    def stock_calls(self) -> list[StockCall]:
        """See `Student`: the default calls of the steps that the grid has, and those that use its chosen points."""
        default = replace(self.grid, chosen={})
        calls = [({"num_inference_steps": n}, n, default) for n in (1, 2, 4) if n <= self.most_steps]
        calls += [(self.stock_call(n), n, self.grid) for n in self.grid.chosen]
        ends = (self.sigma_min, self.sigma_max)
        return [StockCall(call, plan_consistency(grid.sigmas(steps, *ends))) for call, steps, grid in calls]

    def stock_call(self, steps: int) -> dict[str, Any]:
        """See `Student`: the noise levels are those of `step_sigmas`."""
        if steps not in self.grid.chosen:
            return {"num_inference_steps": steps}
        return {"num_inference_steps": None, "timesteps": list(self.grid.chosen[steps])}


@torch.inference_mode()
def sample_consistency(model: Denoiser, sigmas: Sequence[float], draw: Draw, condition: Condition = NONE) -> Tensor:
    """Multistep consistency sampling (Song 2023, algorithm 1): images [B,C,H,W] in the range of the model's space.

    `sigmas` descend from sigma_max; `draw` gives one standard normal [B,C,H,W] a call and is called once a step.
    """
    x = draw() * sigmas[0]
    for index, sigma in enumerate(sigmas):
        if index:
            x = x + (sigma**2 - model.space.sigma_min**2) ** 0.5 * draw()
        x = model.space.clamped(model(x, sigma, condition))
    return x


def plan_consistency(sigmas: Sequence[float]) -> Planned:
    """Multistep consistency sampling at given noise levels."""
    return Planned(schedule=list(sigmas), nfe=len(sigmas), function=sample_consistency, course=sigmas)
