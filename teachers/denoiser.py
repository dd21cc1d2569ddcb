"""A discrete VP (DDPM) network of any prediction type as a `Denoiser`."""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from fewstep.teachers.interfaces import per_image
from fewstep.teachers.schedule import timestep_of_sigma, vp_sigmas

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class VPDenoiser:
    """D(x; sigma) of a UNet2DModel and the DDPM schedule it was trained under.

    With x = x0 + sigma*eps, the network sees x/sqrt(1 + sigma^2) and t(sigma), interpolated in ln sigma.
    Below the table's smallest sigma, t = 0 is used. It is no module, so that a distilling network never owns it.
    """

    num_classes: int | None = None

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
        self.unet, self.scheduler = unet, scheduler
        self.prediction: str = scheduler.config["prediction_type"]
        size = unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.shape: tuple[int, int, int] = (unet.config["in_channels"], height, width)
        self.sigmas: Tensor | None = vp_sigmas(scheduler.alphas_cumprod)
        self.finite_sigmas = self.sigmas[torch.isfinite(self.sigmas)]
        """Without the infinite last entry of a schedule of zero terminal SNR."""
        self.sigma_min, self.sigma_max = float(self.finite_sigmas[0]), float(self.finite_sigmas[-1])

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Estimate x0 [B,C,H,W] from x = x0 + sigma*eps and sigma [B]; `labels` is not used."""
        self.finite_sigmas = self.finite_sigmas.to(sigma.device)  # once: to move it each time is to wait for the device
        timestep = timestep_of_sigma(sigma, self.finite_sigmas)
        s = per_image(sigma)
        x_vp = x / (1 + s**2).sqrt()
        output = self.unet(x_vp, timestep).sample[:, : self.shape[0]].float()
        return denoised_from_output(output, x, s, self.prediction)


def denoised_from_output(output: Tensor, x: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """x0 from a network's output at x = x0 + sigma*eps; sigma broadcasts against x (Salimans & Ho 2022, sec. 4)."""
    if prediction == "epsilon":
        return x - sigma * output
    if prediction == "v_prediction":
        return x / (1 + sigma**2) - sigma / (1 + sigma**2).sqrt() * output
    if prediction == "sample":
        return output
    raise ValueError(f"prediction type {prediction!r}: use one of {', '.join(PREDICTIONS)}")
