"""Distribution matching: the student's images, noised, look to a denoiser of their own as they do to the teacher.

The fake denoiser P is trained on the student's images while the student learns from the difference between P and the
teacher D, which is that of the two scores (DMD2: Yin 2024; SiD: Zhou 2024).
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fewstep.students.frozen import frozen_call
from fewstep.students.pairs import log_normal_sigmas
from fewstep.teachers.guided import Guided
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
)
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import output_weight


def dmd_loss(images: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Losses [B] whose gradient is g/dim, g = (P(y) - D(y))/mean|x - D(y)| (Yin 2023, eq. 7-8; DMD2, section 3).

    images: x [B,C,H,W] with its gradient; real, fake: D(y), P(y) of y = x + s*n.
    """
    with torch.no_grad():
        difference = (fake - real) / _distance(images, real)
        goal = images - difference
    return 0.5 * (images - goal).square().mean(dim=(1, 2, 3))


def sid_loss(images: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """Losses [B]: (D - P)*((D - x) - alpha*(D - P))/sg(mean|x - D|) (Zhou 2024, eq. 23), with gradients through all."""
    difference = real - fake
    loss = difference * ((real - images) - alpha * difference) / _distance(images, real).detach()
    return loss.mean(dim=(1, 2, 3))


def _distance(images: Tensor, real: Tensor) -> Tensor:
    return (images - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)


def _trainable(model: Preconditioned) -> Preconditioned:
    """A model with gradients, but for the frequencies of a Fourier time embedding, which are never trained."""
    model.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if ".time_proj." in name:
            parameter.requires_grad_(False)
    return model


class MatchingLosses(NamedTuple):
    """Losses [B] of the fake denoiser and of the student (None: it does not learn), at its noise levels [B].

    estimate: the student's images [B,C,H,W].
    """

    fake: Tensor
    student: Tensor | None
    sigma: Tensor
    estimate: Tensor


class MatchingObjective(Objective):
    """Train the fake denoiser at every step, and `network` too at every `fake_updates`-th.

    alpha: SiD's, which is data-free; None: DMD. The share `at_sigma_max` of a batch is made from noise at sigma_max;
    the rest, so that several steps serve too, from real images (SiD: the student's own) with noise t, ln t ~ N(0, 1).
    The images are noised to s, ln s ~ N(mean, std^2). The fake starts as the teacher itself, not as the student's
    first weights: the two then differ by what the student's images make of it and by nothing else, while the fold into
    the student's scaling is off by its refit and by the shift of sigma_min, which would drive the student.
    """

    partial = True

    def __init__(
        self,
        network: Preconditioned,
        teacher: Preconditioned | Guided,
        *,
        alpha: float | None,
        fake_updates: int,
        fake_lr_scale: float,
        at_sigma_max: float,
        mean: float,
        std: float,
    ) -> None:
        super().__init__()
        self.network, self.space, self._teacher = network, network.space, [teacher]  # in a list: no part of this module
        self.fake = _trainable(teacher.clone())
        self.alpha, self.fake_updates, self.fake_lr_scale = alpha, fake_updates, fake_lr_scale
        self.at_sigma_max, self.mean, self.std = at_sigma_max, mean, std
        share, own = 1 / fake_updates, alpha is not None
        derivative = share * own  # of SiD, of the teacher with respect to its input, as much as an evaluation
        self.cost = Evaluations(
            student=1 + share,
            target=1 - share + (1 - at_sigma_max) * own + derivative,
            teacher=share,
            jvp=share * own,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The student and the fake denoiser, each in a group of its own."""
        fake = {"params": list(self.fake.parameters()), "lr_scale": self.fake_lr_scale}
        return [{"params": list(self.network.parameters())}, fake]

    def train(self, mode: bool = True) -> Self:
        """The fake stays without dropout: it sees new images at each step, and is compared with the teacher."""
        super().train(mode)
        self.fake.eval()
        return self

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        terms = self.losses(batch, generator, learns=(progress.step + 1) % self.fake_updates == 0)
        loss, spread = terms.fake, terms.estimate.detach().std(dim=0).mean()
        log = {"fake_loss": loss.detach().mean(), "spread": spread}
        if terms.student is not None:
            loss, log = loss + terms.student, log | {"student_loss": terms.student.detach().mean()}
        return LossTerms(loss=loss, sigma=terms.sigma, estimate=terms.estimate, log=log)

    def losses(
        self, batch: Batch, generator: torch.Generator, *, learns: bool, made: tuple[Tensor, Tensor] | None = None
    ) -> MatchingLosses:
        """What fake denoiser and, where it `learns`, student minimise.

        made: the student's images of `inputs` and their noise levels, where it has been called.
        """
        if made is None:
            x_t, t = self.inputs(batch, generator)
            with torch.set_grad_enabled(learns):
                made = self.network(x_t, t, batch.condition), t
        images, t = made
        ends = self.space.sigma_min, self.space.sigma_max
        s = moved(log_normal_sigmas(len(t), *ends, self.mean, self.std, generator), t.device)
        noise = per_image(s) * randn(tuple(images.shape), generator, t.device)
        sample = images.detach()
        estimate = self.fake(sample + noise, s, batch.condition)
        error = (estimate - sample).square().mean(dim=(1, 2, 3)) * output_weight(self.fake.scaling, s)
        student = self._students(images, noise, s, estimate.detach(), batch.condition) if learns else None
        return MatchingLosses(fake=error, student=student, sigma=t, estimate=images)

    def inputs(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the student makes images of, [B,C,H,W], and its noise levels [B]."""
        space, device, num = self.space, batch.images.device, len(batch.images)
        pure = round(self.at_sigma_max * num)
        drawn = log_normal_sigmas(num, space.sigma_min, space.sigma_max, 0.0, 1.0, generator)
        drawn[:pure] = space.sigma_max
        t = moved(drawn, device)
        noise = per_image(t) * randn(tuple(batch.images.shape), generator, device)
        clean = batch.images[pure:]
        if self.alpha is not None and len(clean):
            with torch.no_grad():
                own = space.sigma_max * randn(tuple(clean.shape), generator, device)
                condition = batch.condition.of(slice(pure, None))
                clean = self.network(own, torch.full_like(t[pure:], space.sigma_max), condition)
        return torch.cat([noise[:pure], clean + noise[pure:]]), t

    def _students(self, images: Tensor, noise: Tensor, s: Tensor, fake: Tensor, condition: Condition) -> Tensor:
        """The student's losses [B]; fake: P(y) without its gradient."""
        y, teacher = images + noise, self._teacher[0]
        if self.alpha is None:
            with torch.no_grad():
                real = teacher(y, s, condition)
            return dmd_loss(images, real, fake)
        real, fake = (frozen_call(model, y, s, condition) for model in (teacher, self.fake))
        return sid_loss(images, real, fake, self.alpha)
