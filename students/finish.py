"""What every finish of a method is: an objective around another, which takes part from some point of training on."""

from dataclasses import replace

from torch import Tensor, nn

from fewstep.teachers.interfaces import LossTerms, Objective, Progress

RAMP = 0.25
"""Share of the finish. At full weight from the start, one of eight trainings on the digits was thrown off its way."""


class Finish(Objective):
    """`objective`, and in the last `share` of training more losses, whose weight on the student grows over RAMP."""

    partial = True  # before the finish its own networks have no gradient

    def __init__(self, objective: Objective, *, weight: float, share: float) -> None:
        super().__init__()
        self.objective, self.weight, self.share = objective, weight, share

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        """The student."""
        return self.objective.network

    def pace(self, progress: Progress) -> float:
        """The method's own."""
        return self.objective.pace(progress)

    def averaged(self) -> nn.Module:
        """What the method averages."""
        return self.objective.averaged()

    def update(self, progress: Progress) -> None:
        """The method's own."""
        self.objective.update(progress)

    def has_begun(self, progress: Progress) -> bool:
        """Whether the finish takes part."""
        return progress.fraction >= 1 - self.share

    def weight_at(self, progress: Progress) -> float:
        """The weight on the student after the finish has begun."""
        done = (progress.fraction - (1 - self.share)) / self.share
        return self.weight * min(1.0, done / RAMP)


def with_added(terms: LossTerms, added: Tensor, log: dict[str, Tensor]) -> LossTerms:
    """The method's terms with further losses [b] or their mean; curves are drawn of the method's own."""
    shown = terms.loss if terms.shown is None else terms.shown
    return replace(terms, loss=terms.loss + added, shown=shown, log={**terms.log, **log})
