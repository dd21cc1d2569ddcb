"""The teacher's training objective (Ho 2020, algorithm 1) for epsilon and v prediction."""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from fewstep.teachers.interfaces import Batch, Evaluations, LossTerms, Objective, Progress, moved, randn
from fewstep.teachers.schedule import vp_sigmas


class DDPMObjective(Objective):
    """Mean squared error of the predicted epsilon or v at uniformly drawn timesteps.

    The timesteps of a batch are stratified: one in each of B equal parts of [0, T), in random order, which
    leaves the expectation as it is and lowers the variance (Kingma 2021, appendix I.1).
    """

    cost = Evaluations(student=1)
    sigmas: Tensor

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.network = unet
        self.scheduler = scheduler
        self.prediction: str = scheduler.config["prediction_type"]
        self.register_buffer("sigmas", vp_sigmas(scheduler.alphas_cumprod).float(), persistent=False)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0 = batch.images
        num, device = len(x_0), x_0.device
        strata = torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)
        total: int = self.scheduler.config["num_train_timesteps"]
        timesteps = moved((strata / num * total).long().clamp(max=total - 1), device)
        eps = randn(tuple(x_0.shape), generator, device)
        x_t = self.scheduler.add_noise(x_0, eps, timesteps)  # type: ignore[arg-type]
        target = eps if self.prediction == "epsilon" else self.scheduler.get_velocity(x_0, eps, timesteps)  # type: ignore[arg-type]
        output = self.network(x_t, timesteps).sample.float()
        loss = (output - target).square().mean(dim=(1, 2, 3))
        return LossTerms(loss=loss, sigma=self.sigmas[timesteps])
