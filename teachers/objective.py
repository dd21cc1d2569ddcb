"""The training objectives of teachers: a DDPM's (Ho 2020, algorithm 1), and that of scalings without a schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from fewstep.teachers.folder import FLOW_ENDS
from fewstep.teachers.interfaces import (
    Batch,
    Condition,
    Evaluations,
    LossTerms,
    Objective,
    Progress,
    moved,
    per_image,
    randn,
    stratified,
)
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM, VE, FlowMatching, output_weight
from fewstep.teachers.schedule import vp_sigmas


def without_some(labels: Tensor, none: int, share: float, generator: torch.Generator) -> Tensor:
    """Labels [B] of which a share, by chance, is the label `none` (Ho & Salimans 2022, algorithm 1)."""
    if not share:
        return labels
    dropped = torch.rand(len(labels), generator=generator) < share
    return torch.where(moved(dropped, labels.device), none, labels)


class DDPMObjective(Objective):
    """Mean squared error of the predicted epsilon, v or x0 at uniform timesteps, stratified over the batch.

    Of a class-conditional network the share `label_dropout` of the images have the last of its classes, which means
    none; None: it is unconditional.
    """

    cost = Evaluations(student=1)
    sigmas: Tensor

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler, label_dropout: float | None = None) -> None:
        super().__init__()
        self.network = unet
        self.scheduler = scheduler
        self.none = -1 if label_dropout is None else unet.config["num_class_embeds"] - 1
        self.label_dropout = label_dropout
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
        labels = {}
        if self.label_dropout is not None:
            assert batch.condition.labels is not None
            given = without_some(batch.condition.labels, self.none, self.label_dropout, generator)
            labels = {"class_labels": given}
        output = self.network(x_t, timesteps, **labels).sample.float()
        loss = (output - target).square().mean(dim=(1, 2, 3))
        return LossTerms(loss=loss, sigma=self.sigmas[timesteps])


def _log_normal(quantile: Tensor, mean: float, std: float) -> Tensor:
    return (mean + std * torch.special.ndtri(quantile)).exp()


def _log_uniform(quantile: Tensor, low: float, high: float) -> Tensor:
    return low * (high / low) ** quantile


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How a family is trained: its noise levels at quantiles [B], and the ends that its model is made for."""

    ends: tuple[float, float]
    at: Callable[[Tensor], Tensor]


LEVELS = {
    EDM: Levels(ends=(0.002, 80.0), at=partial(_log_normal, mean=-1.2, std=1.2)),  # Karras 2022, table 1
    FlowMatching: Levels(ends=FLOW_ENDS, at=lambda t: t / (1 - t)),  # t uniform: Lipman 2023
    VE: Levels(ends=(0.02, 100.0), at=partial(_log_uniform, low=0.02, high=100.0)),  # Song 2021: CIFAR-10's, in [-1, 1]
}
"""By a scaling that has no schedule."""


class DenoisingObjective(Objective):
    """`output_weight`*|D(x; s) - x0|^2 of a model without a schedule, at its family's noise levels, stratified.

    `label_dropout`: as in `DDPMObjective`.
    """

    cost = Evaluations(student=1)

    def __init__(self, model: Preconditioned, label_dropout: float = 0.0) -> None:
        super().__init__()
        self.network, self.label_dropout = model, label_dropout

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0, model = batch.images, self.network
        assert isinstance(model, Preconditioned)
        space, levels = model.space, LEVELS[type(model.scaling)]
        quantile = stratified(len(x_0), generator)
        sigma = moved(levels.at(quantile).clamp(space.sigma_min, space.sigma_max).float(), x_0.device)
        x = x_0 + per_image(sigma) * randn(tuple(x_0.shape), generator, x_0.device)
        condition = batch.condition
        if space.num_classes is not None:
            assert condition.labels is not None
            condition = Condition(
                labels=without_some(condition.labels, space.num_classes, self.label_dropout, generator)
            )
        error = (model(x, sigma, condition) - x_0).square().mean(dim=(1, 2, 3))
        return LossTerms(loss=output_weight(model.scaling, sigma) * error, sigma=sigma)
