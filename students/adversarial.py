"""An adversarial finish: in the last part of training the student's images also have to look real."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.flop_counter import FlopCounterMode

from fewstep.students.discriminator import Discriminator, Encoder, Heads
from fewstep.students.finish import Finish, with_added
from fewstep.students.frozen import frozen_call
from fewstep.students.interfaces import Student
from fewstep.teachers.interfaces import (
    Batch,
    Condition,
    LossTerms,
    Objective,
    Progress,
    moved,
    per_image,
    randn,
    some_class,
    stratified,
)


class AdversarialFinish(Finish):
    """Any objective, and from the fraction 1 - share of training on a discriminator of its estimates.

    With `from_noise` it judges images that the student makes of new noise in one step instead: the estimates of a
    method are mostly those of lower noise levels, and start from noises that it saw before. What it judges and real
    images are noised to levels of their own, ln s uniform over `sigmas`, so that few images cannot be memorised. The
    discriminator d has a parameter group of its own and learns with the non-saturating logistic loss and R1 (Mescheder
    2018): softplus(-d(real)) + softplus(d(made)) + penalty*|grad d(real)|^2; the student's loss gets
    weight*softplus(-d(made)), the weight growing from nothing over the first RAMP of the finish. The discriminator sees
    pixels, or with `features` what the student's own network saw in them before distillation (`Encoder`; the gradient
    of R1 is then that at these features), and never what a benchmark measures with.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        weight: float,
        share: float,
        from_noise: float,
        features: bool,
        width: int,
        sigmas: tuple[float, float],
        penalty: float,
        lr_scale: float,
    ) -> None:
        super().__init__(objective, weight=weight, share=share)
        assert isinstance(objective.network, Student)
        channels, size, _ = objective.network.space.shape
        self.encoder = Encoder(objective.network) if features else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = Heads(self.encoder.channels, width) if self.encoder else Discriminator(channels, size, width)
            self.discriminator = made.to(objective.network.device)
        self.penalty, self.lr_scale = penalty, lr_scale
        self.sigmas, self.from_noise = sigmas, from_noise
        passes = self._passes(objective.network) * share * (from_noise or 1.0)
        own = objective.cost
        self.cost = replace(own, student=own.student + share * from_noise, smaller=own.smaller + passes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The method's own groups, and the discriminator's."""
        own = {"params": list(self.discriminator.parameters()), "lr_scale": self.lr_scale, "betas": (0.0, 0.99)}
        return [*self.objective.parameter_groups(), own]

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]; the discriminator's own is among them."""
        terms = self.objective(batch, progress, generator)
        if not self.has_begun(progress):
            return terms
        images = self._one_step(batch, generator) if self.from_noise else terms.estimate
        assert images is not None
        real, sigma_real = self._noised(batch.images[: len(images)], generator)
        made, sigma_made = self._noised(images, generator)
        seen = self._seen(made, sigma_made)
        fooled = softplus(-frozen_call(self.discriminator, *seen, sigma_made))
        with torch.no_grad():
            seen_real = self._seen(real, sigma_real)
        told, penalty = self.discriminator_loss(seen_real, sigma_real, [each.detach() for each in seen], sigma_made)
        added = self.weight_at(progress) * fooled + told + self.penalty * penalty
        log = {"discriminator_loss": told.detach().mean(), "fooled_loss": fooled.detach().mean()}
        return with_added(terms, added if len(added) == len(terms.loss) and not self.from_noise else added.mean(), log)

    def _one_step(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What the student makes of new noise in one step, a share `from_noise` of a batch, of the classes there."""
        student = self.network
        assert isinstance(student, Student)
        shape = (max(1, round(len(batch.images) * self.from_noise)), *student.space.shape)
        sigma = torch.full((shape[0],), student.space.sigma_max, device=student.device)
        noise = student.space.sigma_max * randn(shape, generator, student.device)
        return student(noise, sigma, batch.condition.of(slice(shape[0])))

    def _seen(self, images: Tensor, sigma: Tensor) -> Sequence[Tensor]:
        """What the discriminator sees of noised images: these, or features of them."""
        return self.encoder(images, sigma) if self.encoder else [images]

    def discriminator_loss(
        self, real: Sequence[Tensor], sigma_real: Tensor, made: Sequence[Tensor], sigma_made: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The discriminator's logistic losses [B] of what it sees, and R1's squared gradients [B]."""
        real = [each.detach().requires_grad_(True) for each in real]
        logits = self.discriminator(*real, sigma_real)
        gradients = torch.autograd.grad(logits.sum(), real, create_graph=True)
        told = softplus(-logits) + softplus(self.discriminator(*made, sigma_made))
        return told, sum((each.square().flatten(1).sum(1) for each in gradients), torch.zeros_like(logits))

    def _passes(self, student: Student) -> float:
        """What discriminator and encoder cost for an image, in forward passes of the student."""
        x, sigma = torch.zeros((1, *student.space.shape), device=student.device), torch.ones(1, device=student.device)
        condition = some_class(student.space, 1, student.device)
        with torch.no_grad():
            seen = self._seen(x, sigma)
        judging = 11 * _flops(self.discriminator, *seen, sigma)  # R1's derivatives take six
        seeing = 3 * _flops(self.encoder, x, sigma) if self.encoder else 0  # once backwards
        return (judging + seeing) / _flops(student, x, sigma, condition)

    def _noised(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images at random noise levels, and these [B]."""
        low, high = map(math.log, self.sigmas)
        levels = (low + (high - low) * stratified(len(images), generator)).exp().float()
        sigma = moved(levels, images.device)
        return images + per_image(sigma) * randn(tuple(images.shape), generator, images.device), sigma


@torch.no_grad()
def _flops(network: nn.Module, *inputs: Tensor | Condition) -> int:
    """Operations of a forward pass."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()
