"""An adversarial finish: in the last part of training the student's images also have to look real."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.flop_counter import FlopCounterMode

from fewstep.students.discriminator import Discriminator
from fewstep.students.frozen import frozen_call
from fewstep.students.interfaces import Student
from fewstep.teachers.interfaces import Batch, LossTerms, Objective, Progress, moved, per_image, randn, stratified

RAMP = 0.25
"""Share of the finish. At full weight from the start, one of eight trainings on the digits was thrown off its way."""


class AdversarialFinish(Objective):
    """Any objective, and from the fraction 1 - share of training on a discriminator of its estimates.

    Estimates and real images are noised to levels of their own, ln s uniform over `sigmas`, so that few images cannot
    be memorised. The discriminator d has a parameter group of its own and learns with the non-saturating logistic loss
    and R1 (Mescheder 2018): softplus(-d(real)) + softplus(d(made)) + penalty*|grad d(real)|^2; the student's loss gets
    weight*softplus(-d(made)), the weight growing from nothing over the first RAMP of the finish. The discriminator sees
    pixels alone: no features that a benchmark measures with.
    """

    partial = True  # before the finish the discriminator has none

    def __init__(
        self,
        objective: Objective,
        *,
        weight: float,
        share: float,
        width: int,
        sigmas: tuple[float, float],
        penalty: float,
        lr_scale: float,
    ) -> None:
        super().__init__()
        assert isinstance(objective.network, Student)
        channels, size, _ = objective.network.space.shape
        self.objective = objective
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.discriminator = Discriminator(channels, size, width).to(objective.network.device)
        self.weight, self.share, self.penalty, self.lr_scale = weight, share, penalty, lr_scale
        self.sigmas = sigmas
        size_of = {module: _flops(module, objective.network) for module in (self.discriminator, objective.network)}
        passes = 11 * share * size_of[self.discriminator] / size_of[objective.network]  # R1's derivatives take six
        self.cost = replace(objective.cost, smaller=objective.cost.smaller + passes)

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        """The student."""
        return self.objective.network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The method's own groups, and the discriminator's."""
        own = {"params": list(self.discriminator.parameters()), "lr_scale": self.lr_scale, "betas": (0.0, 0.99)}
        return [*self.objective.parameter_groups(), own]

    def averaged(self) -> nn.Module:
        """What the method averages."""
        return self.objective.averaged()

    def update(self, progress: Progress) -> None:
        """The method's own."""
        self.objective.update(progress)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]; the discriminator's own is among them."""
        terms = self.objective(batch, progress, generator)
        if progress.fraction < 1 - self.share:
            return terms
        assert terms.estimate is not None
        real, sigma_real = self._noised(batch.images, generator)
        made, sigma_made = self._noised(terms.estimate, generator)
        fooled = softplus(-frozen_call(self.discriminator, made, sigma_made))
        told, penalty = self.discriminator_loss(real, sigma_real, made.detach(), sigma_made)
        return LossTerms(
            loss=terms.loss + self._weight(progress) * fooled + told + self.penalty * penalty,
            sigma=terms.sigma,
            estimate=terms.estimate,
            shown=terms.loss if terms.shown is None else terms.shown,
            log={
                **terms.log,
                "discriminator_loss": told.detach().mean(),
                "fooled_loss": fooled.detach().mean(),
            },
        )

    def _weight(self, progress: Progress) -> float:
        done = (progress.fraction - (1 - self.share)) / self.share
        return self.weight * min(1.0, done / RAMP)

    def discriminator_loss(
        self, real: Tensor, sigma_real: Tensor, made: Tensor, sigma_made: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The discriminator's logistic losses [B] and R1's squared gradients [B]."""
        real = real.detach().requires_grad_(True)
        logits = self.discriminator(real, sigma_real)
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        told = softplus(-logits) + softplus(self.discriminator(made, sigma_made))
        return told, gradient.square().flatten(1).sum(1)

    def _noised(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images at random noise levels, and these [B]."""
        low, high = map(math.log, self.sigmas)
        levels = (low + (high - low) * stratified(len(images), generator)).exp().float()
        sigma = moved(levels, images.device)
        return images + per_image(sigma) * randn(tuple(images.shape), generator, images.device), sigma


@torch.no_grad()
def _flops(network: nn.Module, student: Student) -> int:
    """Operations of a forward pass of one image, on the student's device."""
    x = torch.zeros((1, *student.space.shape), device=student.device)
    with FlopCounterMode(display=False) as counter:
        network(x, torch.ones(1, device=student.device))
    return counter.get_total_flops()
