"""The teacher's training objective (Ho 2020, algorithm 1), whatever the network predicts."""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from fewstep.teachers.interfaces import Batch, Evaluations, LossTerms, Objective, Progress, moved, randn, stratified
from fewstep.teachers.schedule import vp_sigmas


class DDPMObjective(Objective):
    """Mean squared error of the predicted epsilon, v or x0 at uniform timesteps, stratified over the batch."""

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
        total: int = self.scheduler.config["num_train_timesteps"]
        position = stratified(num, generator, torch.float32) * total
        timesteps = moved(position.long().clamp(max=total - 1), device)
        eps = randn(tuple(x_0.shape), generator, device)
        x_t = self.scheduler.add_noise(x_0, eps, timesteps)  # type: ignore[arg-type]
        v = self.scheduler.get_velocity(x_0, eps, timesteps)  # type: ignore[arg-type]
        target = {"epsilon": eps, "v_prediction": v, "sample": x_0}[self.prediction]
        output = self.network(x_t, timesteps).sample.float()
        loss = (output - target).square().mean(dim=(1, 2, 3))
        return LossTerms(loss=loss, sigma=self.sigmas[timesteps])
