"""Sampling from a teacher: DDPM, DDIM, DPM-Solver++, UniPC and Heun. Each returns images [B,C,H,W] in [-1, 1].

`draw` gives one standard normal [B,C,H,W] a call; the deterministic solvers call it once.
"""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from fewstep.teachers.denoiser import VPDenoiser
from fewstep.teachers.interfaces import Denoiser, per_image
from fewstep.teachers.schedule import karras_sigmas

Draw = Callable[[], Tensor]


def ddpm_timesteps(teacher: VPDenoiser, steps: int) -> list[int]:
    """The integer timesteps of `steps` equal strides over the training schedule, first to last."""
    total: int = teacher.scheduler.config["num_train_timesteps"]
    return [index * (total // steps) for index in range(steps)][::-1]


@torch.inference_mode()
def sample_ddpm(teacher: VPDenoiser, steps: int, draw: Draw) -> Tensor:
    """Ancestral sampling with the posterior's own variance (Ho 2020, algorithm 2 and eqs. 6-7).

    The same arithmetic as the stock DDPMPipeline (`fixed_small`, x0 clipped where the schedule says so).
    """
    scheduler, unet = teacher.scheduler, teacher.unet
    timesteps = ddpm_timesteps(teacher, steps)
    x = draw()
    for index, t in enumerate(timesteps):
        abar = scheduler.alphas_cumprod[t]
        last = index + 1 == len(timesteps)
        abar_next = scheduler.one if last else scheduler.alphas_cumprod[timesteps[index + 1]]
        alpha = abar / abar_next
        output = unet(x, torch.full((len(x),), t, device=x.device)).sample[:, : teacher.shape[0]].float()
        x_0 = _x_0(output, x, abar, teacher.prediction)
        if scheduler.config["clip_sample"]:
            x_0 = x_0.clamp(-scheduler.config["clip_sample_range"], scheduler.config["clip_sample_range"])
        x = abar_next.sqrt() * (1 - alpha) / (1 - abar) * x_0 + alpha.sqrt() * (1 - abar_next) / (1 - abar) * x
        if not last:
            variance = ((1 - abar_next) / (1 - abar) * (1 - alpha)).clamp(min=1e-20)
            x = x + variance.sqrt() * draw()
    return x.clamp(-1, 1)


def _x_0(output: Tensor, x_vp: Tensor, abar: Tensor, prediction: str) -> Tensor:
    # In VP terms, not through sigma: v prediction then holds at abar = 0, a schedule of zero terminal SNR.
    if prediction == "epsilon":
        return (x_vp - (1 - abar).sqrt() * output) / abar.sqrt()
    if prediction == "v_prediction":
        return abar.sqrt() * x_vp - (1 - abar).sqrt() * output
    return output


def ddim_scheduler(teacher: VPDenoiser, steps: int) -> DDIMScheduler:
    """DDIM at its best: trailing timesteps, so that it starts at pure noise, and a final sigma of zero."""
    config = teacher.scheduler.config
    made = DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler = cast(DDIMScheduler, made)
    scheduler.set_timesteps(steps)
    return scheduler


def dpmsolver_scheduler(teacher: VPDenoiser, steps: int) -> DPMSolverMultistepScheduler:
    """DPM-Solver++(2M) (Lu 2022) with trailing timesteps and a final sigma of zero."""
    made = DPMSolverMultistepScheduler.from_config(
        teacher.scheduler.config,
        algorithm_type="dpmsolver++",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler = cast(DPMSolverMultistepScheduler, made)
    scheduler.set_timesteps(steps)
    return scheduler


def unipc_scheduler(teacher: VPDenoiser, steps: int) -> UniPCMultistepScheduler:
    """UniPC of order 2 (Zhao 2023, B2 variant) with trailing timesteps and a final sigma of zero."""
    made = UniPCMultistepScheduler.from_config(
        teacher.scheduler.config, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler = cast(UniPCMultistepScheduler, made)
    scheduler.set_timesteps(steps)
    return scheduler


@torch.inference_mode()
def sample_scheduler(
    teacher: VPDenoiser,
    scheduler: DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler,
    draw: Draw,
) -> Tensor:
    """Run a diffusers scheduler whose timesteps are set; it must be deterministic."""
    scheduler = copy.deepcopy(scheduler)  # it holds the state of a call, and calls may overlap
    x = draw() * scheduler.init_noise_sigma
    scheduler.set_timesteps(len(scheduler.timesteps))
    for t in scheduler.timesteps:
        output = teacher.unet(scheduler.scale_model_input(x, int(t)), t.to(x.device)).sample[:, : teacher.shape[0]]
        x = scheduler.step(output.float(), t, x, return_dict=False)[0]  # type: ignore[arg-type]
    return x.clamp(-1, 1)


def heun_sigmas(teacher: Denoiser, steps: int) -> Tensor:
    """The Karras grid (rho 7) over the teacher's own range, float64 [steps]; a last step to 0 follows it."""
    return karras_sigmas(steps, max(teacher.sigma_min, 0.002), min(teacher.sigma_max, 80.0))


@torch.inference_mode()
def sample_heun(teacher: Denoiser, steps: int, draw: Draw) -> Tensor:
    """Heun's second-order method on the probability-flow ODE (Karras 2022, algorithm 1): 2*steps - 1 evaluations."""
    sigmas = [*heun_sigmas(teacher, steps).tolist(), 0.0]
    x = draw() * sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        slope = ode_slope(teacher, x, torch.full((len(x),), sigma, device=x.device))
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = ode_slope(teacher, x_next, torch.full((len(x),), sigma_next, device=x.device))
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
    return x.clamp(-1, 1)


def ode_slope(teacher: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """dx/dsigma = (x - D(x; sigma)) / sigma of the probability-flow ODE, [B,C,H,W] (Karras 2022, eq. 3)."""
    return (x - teacher.denoise(x, sigma, labels)) / per_image(sigma)
