"""A matching finish: in the last part of training the student's images of new noise also follow the teacher's score."""

from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any, Self

import torch

from fewstep.students.finish import Finish, with_added
from fewstep.students.joined import Rider, has_dropout, joined
from fewstep.students.matching import MatchingObjective
from fewstep.teachers.interfaces import Batch, Evaluations, LossTerms, Objective, Progress


class MatchingFinish(Finish):
    """Any objective, and from the fraction 1 - share of training on distribution matching in a part of each batch.

    A method alone asks for the best guess of each image and has seen a finite number of noises; matching asks for the
    teacher's distribution, at noise that is new in every batch. `images` of a batch (a share) are `matching`'s, the
    others the method's, which holds the student to the teacher's map and to its several steps. The losses are
    comparable where `weight` is about 1: that of matching is taken over the whole image, as the distances are. The
    weight grows from nothing over the first RAMP of the finish, while the fake denoiser, which starts as the teacher,
    learns what the student makes. The student is called once for both parts. An adversarial finish around this one
    judges matching's images.
    """

    def __init__(
        self,
        objective: Objective,
        matching: MatchingObjective,
        *,
        weight: float,
        share: float,
        images: float,
        lr_scale: float,
    ) -> None:
        super().__init__(objective, weight=weight, share=share)
        self.images, self.lr_scale, self.fake = images, lr_scale, matching.fake
        self._matching = [matching]  # in a list: the student is a part of this module already
        self._apart = has_dropout(self.network)  # a method has one mask for both of its points
        self.cost = _mixed(objective.cost, matching.cost, share * images)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The method's own groups, and the fake denoiser's."""
        return [*self.objective.parameter_groups(), self._matching[0].parameter_groups()[1]]

    def pace(self, progress: Progress) -> float:
        """In the finish the learning rate is `lr_scale` times its course: the gradient of matching is a noisy one."""
        return super().pace(progress) * (self.lr_scale if self.has_begun(progress) else 1.0)

    def train(self, mode: bool = True) -> Self:
        """The fake stays without dropout: see `MatchingObjective`."""
        super().train(mode)
        self.fake.eval()
        return self

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [b] of the method's part of the images [B,C,H,W] in [-1, 1]; the finish's mean is added to each."""
        num = len(batch.images)
        own = num - max(1, round(self.images * num))
        if own < 1 or not self.has_begun(progress):
            return self.objective(batch, progress, generator)
        matching, part = self._matching[0], _part(batch, slice(own, None))
        rider = Rider(*matching.inputs(part, generator), part.condition)
        with nullcontext() if self._apart else joined(self.network, rider):
            terms = self.objective(_part(batch, slice(own)), progress, generator)
        images = self.network(rider.x, rider.sigma, part.condition) if rider.images is None else rider.images
        losses = matching.losses(part, generator, learns=True, made=(images, rider.sigma))
        assert losses.student is not None
        weight = self.weight_at(progress) * losses.estimate[0].numel()
        log = {"fake_loss": losses.fake.detach().mean(), "matching_loss": losses.student.detach().mean()}
        terms = replace(terms, estimate=losses.estimate)
        return with_added(terms, (weight * losses.student + losses.fake).mean(), log)


def _part(batch: Batch, images: slice) -> Batch:
    return Batch(images=batch.images[images], condition=batch.condition.of(images))


def _mixed(one: Evaluations, other: Evaluations, share: float) -> Evaluations:
    """The cost of an average image, of which a share costs as the `other` does."""
    names = [each.name for each in fields(Evaluations)]
    return Evaluations(**{name: (1 - share) * getattr(one, name) + share * getattr(other, name) for name in names})
