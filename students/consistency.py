"""The consistency function f(x, sigma) = c_skip*x + c_out*F(c_in*x, 250 ln sigma), as stock diffusers computes it."""

import copy

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fewstep.students.grid import StepGrid
from fewstep.teachers.interfaces import per_image
from fewstep.teachers.solvers import Draw


class ConsistencyModel(nn.Module):
    """A student: maps x = x0 + sigma*eps to an estimate of x0 in one evaluation; f(x, sigma_min) = x exactly.

    The scalings are Song 2023, appendix C, with the embedding of the stock CMStochasticIterativeScheduler.
    `sigma_min` and `sigma_max` are rounded to float32: with other values that scheduler's last step can take the
    root of a tiny negative number and every image is NaN. It is a `Denoiser`, so a frozen student can be the
    next teacher. `grid` decides the noise levels of a call with 2, 4 or 8 steps.
    """

    num_classes: int | None = None
    sigmas: Tensor | None = None

    def __init__(
        self,
        unet: UNet2DModel,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 1.0,
        grid: StepGrid | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.sigma_min, self.sigma_max = float(np.float32(sigma_min)), float(np.float32(sigma_max))
        self.sigma_data = sigma_data
        self.grid = grid or StepGrid()
        size: int = unet.config["sample_size"]
        self.shape: tuple[int, int, int] = (unet.config["in_channels"], size, size)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimate x0 [B,C,H,W] float32 from x [B,C,H,W] and sigma [B]; not clamped."""
        s, sd = per_image(sigma), self.sigma_data
        c_in = 1 / (s**2 + sd**2).sqrt()
        c_skip = sd**2 / ((s - self.sigma_min) ** 2 + sd**2)
        c_out = (s - self.sigma_min) * sd * c_in
        raw = self.unet(c_in * x, 250 * sigma.log()).sample.float()
        return c_skip * x + c_out * raw

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The consistency function under the name of the Denoiser interface; `labels` is not used."""
        return self(x, sigma)

    def step_sigmas(self, steps: int) -> list[float]:
        """The noise levels of a call with `steps` steps, descending from sigma_max."""
        return self.grid.sigmas(steps, self.sigma_min, self.sigma_max)

    def clone(self) -> "ConsistencyModel":
        """A copy with weights of its own."""
        return copy.deepcopy(self)


@torch.inference_mode()
def sample_consistency(model: ConsistencyModel, sigmas: list[float], draw: Draw) -> Tensor:
    """Multistep consistency sampling (Song 2023, algorithm 1): images [B,C,H,W] in [-1, 1].

    `sigmas` descend from sigma_max; `draw` gives one standard normal [B,C,H,W] a call and is called once a step.
    """
    x = draw() * sigmas[0]
    for index, sigma in enumerate(sigmas):
        if index:
            x = x + (sigma**2 - model.sigma_min**2) ** 0.5 * draw()
        x = model(x, torch.full((len(x),), sigma, device=x.device)).clamp(-1, 1)
    return x
