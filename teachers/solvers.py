"""Sampling from a Denoiser: DDPM, DDIM, DPM-Solver++, UniPC and Heun, as functions of it in sigma.

`SOLVERS` lists them by name. `draw` gives one standard normal [B,C,H,W] a call; the deterministic solvers call it once.
Images come out [B,C,H,W] in the range of the denoiser's space. A level above the denoiser's table is taken as its top.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from fewstep.teachers.folder import LEVELS
from fewstep.teachers.interfaces import NONE, Condition, Denoiser, Space, per_image
from fewstep.teachers.schedule import karras_sigmas, vp_table

Draw = Callable[[], Tensor]
Sample = Callable[[Denoiser, Draw, Condition], Tensor]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A solver at a number of steps in a space: its timesteps or noise levels, and its evaluations for one image."""

    schedule: list[float]
    nfe: int
    function: Callable[[Denoiser, Any, Draw, Condition], Tensor]
    course: Any
    """What the function goes along: noise levels, or a scheduler."""

    def sample(self, denoiser: Denoiser, draw: Draw, condition: Condition = NONE) -> Tensor:
        """Images of a denoiser in that space."""
        return self.function(denoiser, self.course, draw, condition)


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A way to sample. `stock` is the diffusers scheduler that takes its part in a stock pipeline."""

    label: str
    stock: Any
    options: dict[str, Any] = field(default_factory=dict)
    """Of the scheduler; of those that diffusers steps for us."""
    ours: Callable[[Space, int], Planned] | None = None

    def plan(self, space: Space, steps: int) -> Planned:
        """The solver at `steps` steps."""
        return self.ours(space, steps) if self.ours else plan_scheduled(self, space, steps)


@torch.inference_mode()
def sample_ddpm(denoiser: Denoiser, sigmas: Tensor, draw: Draw, condition: Condition = NONE) -> Tensor:
    """Ancestral sampling down `sigmas` with the posterior's own variance (Ho 2020, algorithm 2 and eqs. 6-7), in sigma:

    x' = D + (s'/s)^2*(x - D) + s'*sqrt(1 - (s'/s)^2)*z, which is the stock DDPMPipeline's step with `fixed_small`.
    """
    course = sigmas.tolist()
    if know := getattr(denoiser, "know", None):  # of ours, not of any denoiser
        know(course)
    x = draw() * (1 + course[0] ** 2) ** 0.5
    for sigma, sigma_next in pairwise([*course, 0.0]):
        x_0 = denoiser.space.clamped(denoiser(x, sigma, condition))
        kept = (sigma_next / sigma) ** 2
        x = torch.lerp(x_0, x, kept)
        if sigma_next:
            x = x.add(draw(), alpha=sigma_next * (1 - kept) ** 0.5)
    return denoiser.space.clamped(x)


@torch.inference_mode()
def sample_heun(denoiser: Denoiser, sigmas: Tensor, draw: Draw, condition: Condition = NONE) -> Tensor:
    """Heun's second-order method on the probability-flow ODE down `sigmas` and to 0 (Karras 2022, algorithm 1)."""
    x = draw() * float(sigmas[0])
    for sigma, sigma_next in pairwise([*sigmas.tolist(), 0.0]):
        slope = (x - estimate(denoiser, x, sigma, condition)) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (x_next - estimate(denoiser, x_next, sigma_next, condition)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
    return denoiser.space.clamped(x)


@torch.inference_mode()
def sample_scheduled(denoiser: Denoiser, scheduler: Any, draw: Draw, condition: Condition = NONE) -> Tensor:  # noqa: ANN401
    """A deterministic diffusers scheduler whose timesteps are set; it is stepped with the denoiser's x0 in VP terms."""
    scheduler = copy.deepcopy(scheduler)  # it holds the state of a call, and calls may overlap
    table = vp_table(scheduler.alphas_cumprod)
    x = draw() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        sigma = float(table[int(t)])
        x_sigma = scheduler.scale_model_input(x, int(t)) * (1 + sigma**2) ** 0.5
        x = scheduler.step(estimate(denoiser, x_sigma, sigma, condition), t, x, return_dict=False)[0]
    return denoiser.space.clamped(x)


def estimate(denoiser: Denoiser, x: Tensor, sigma: float, condition: Condition) -> Tensor:
    """D(x; sigma), held to the space's range above sigma = 1, where x0's mean has no business outside of it.

    It is an average of many images there, and an epsilon network's error is multiplied by sigma: without this, on the
    digits, DPM-Solver++ and UniPC have a Frechet distance of 100 and with it of 5 to 7. Below, an overshoot is
    information: held to the range there too, v prediction loses 2 %.
    """
    x_0 = denoiser(x, sigma, condition)
    return denoiser.space.clamped(x_0) if sigma > 1 else x_0


def ode_slope(denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Condition = NONE) -> Tensor:
    """dx/dsigma = (x - D(x; sigma)) / sigma of the probability-flow ODE, [B,C,H,W] (Karras 2022, eq. 3)."""
    return (x - denoiser(x, sigma, condition)) / per_image(sigma)


def levels(space: Space) -> Tensor:
    """The space's table, float64 [T]; of a continuous model LEVELS over its range, in equal steps of ln sigma."""
    if space.table is not None:
        return space.table
    ends = torch.tensor([space.sigma_min, space.sigma_max], dtype=torch.float64).log()
    return torch.linspace(float(ends[0]), float(ends[1]), LEVELS, dtype=torch.float64).exp()


def stock_scheduler(solver: Solver, space: Space) -> Any:  # noqa: ANN401 - the schedulers share no base class
    """The solver's diffusers scheduler over the levels of a space, fed with x0.

    Its timesteps are trailing, so that it starts at pure noise, and its last step goes to sigma = 0.
    """
    table = levels(space)
    options: dict[str, Any] = {"prediction_type": "sample", "timestep_spacing": "trailing"} | solver.options
    if solver.stock is DDIMScheduler:
        top = max(map(abs, space.clamp)) if space.clamp else 1.0
        options |= {"clip_sample": space.clamp is not None, "clip_sample_range": top}
        if space.threshold is not None:
            ratio, most = space.threshold
            options |= {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": most}
    scheduler = solver.stock(num_train_timesteps=len(table), **options)
    scheduler.alphas_cumprod = (1 / (1 + table**2)).float()
    return scheduler


def plan_scheduled(solver: Solver, space: Space, steps: int) -> Planned:
    """A solver that diffusers steps."""
    scheduler = stock_scheduler(solver, space)
    scheduler.set_timesteps(steps)
    return Planned(
        schedule=scheduler.timesteps.double().tolist(),
        nfe=steps,
        function=sample_scheduled,
        course=scheduler,
    )


def plan_ddpm(space: Space, steps: int) -> Planned:
    """DDPM at `steps` equal strides over the schedule, as the stock pipeline takes them."""
    table = levels(space)
    timesteps = [index * (len(table) // steps) for index in range(steps)][::-1]
    sigmas = table[timesteps]
    return Planned(
        schedule=[float(t) for t in timesteps],
        nfe=steps,
        function=sample_ddpm,
        course=sigmas,
    )


def plan_heun(space: Space, steps: int) -> Planned:
    """Heun on the Karras grid (rho 7) over the space's range, at most 0.002 to 80; a last step to 0 follows it."""
    sigmas = karras_sigmas(steps, max(space.sigma_min, 0.002), min(space.sigma_max, 80.0))
    return Planned(
        schedule=sigmas.tolist(),
        nfe=2 * steps - 1,
        function=sample_heun,
        course=sigmas,
    )


SOLVERS: dict[str, Solver] = {
    "ddpm": Solver(label="DDPM", stock=DDPMScheduler, ours=plan_ddpm),
    "ddim": Solver(label="DDIM", stock=DDIMScheduler, options={"set_alpha_to_one": True}),
    "dpmsolver++": Solver(
        label="DPM-Solver++",
        stock=DPMSolverMultistepScheduler,
        options={"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"},
    ),
    "unipc": Solver(label="UniPC", stock=UniPCMultistepScheduler, options={"final_sigmas_type": "zero"}),
    "heun": Solver(label="Heun", stock=HeunDiscreteScheduler, ours=plan_heun),
}
