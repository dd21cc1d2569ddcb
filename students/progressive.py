"""Progressive distillation (Salimans & Ho 2022): a student learns to make two of its teacher's DDIM steps in one.

At every stage the steps are halved, and the student of one stage is the teacher of the next.
"""

import torch
from torch import Tensor

from fewstep.students.ddim import DDIMStudent
from fewstep.teachers.interfaces import (
    NONE,
    Batch,
    Condition,
    Denoiser,
    Evaluations,
    LossTerms,
    Objective,
    Progress,
    moved,
    per_image,
    randn,
    stratified,
)

REHEARSED = 0.25


def two_steps(
    teacher: Denoiser, x: Tensor, sigmas: tuple[Tensor, Tensor, Tensor], condition: Condition = NONE
) -> Tensor:
    """The x0 with which one DDIM step from s to s2 lands where the teacher's two, from s to s1 to s2, do; [B,C,H,W].

    x = x0 + s*eps; `sigmas` are s >= s1 > s2 >= 0, [B] each. With x' = D + (s'/s)*(x - D) for a step, the paper's
    target (x_s2 - (s2/s)*x)/(1 - s2/s) (appendix G) is a mean of the two estimates, free of the noise: none cancels.
    """
    s, s1, s2 = sigmas
    first = teacher(x, s, condition)
    second = teacher(first + per_image(s1 / s) * (x - first), s1, condition)
    weight = per_image((1 - s2 / s1) / (1 - s2 / s))
    return second * weight + first * (1 - weight)


class ProgressiveDistillation(Objective):
    """Train `network` on two steps of `teacher` in one, with half as many steps at every stage, down to one.

    The stages are equally long. Times are those of the stock DDIM call with the stage's number of steps. A quarter of
    the draws are of the times of earlier stages, at which the student keeps what it has learned: so it can be sampled
    with more steps than one too. The loss is that of v, (1 + 1/s^2)*|D(x; s) - x0|^2.
    """

    cost = Evaluations(student=1, teacher=2)

    def __init__(
        self,
        network: DDIMStudent,
        start_steps: int,
        average_kimg: float = 0.0,
        growth: float = 1.0,
        rehearsed: float = REHEARSED,
        weight: str = "v",
    ) -> None:
        super().__init__()
        self.network = network
        self.teacher = network.clone().requires_grad_(False)  # a part of this module: of its checkpoints
        self.average = network.clone().requires_grad_(False) if average_kimg else None
        self.average_kimg, self.rehearsed, self.weight = average_kimg, rehearsed, weight
        self.steps = [2**k for k in reversed(range(start_steps.bit_length() - 1))]
        lengths = [growth**k for k in range(len(self.steps))]
        self.ends = [sum(lengths[: k + 1]) / sum(lengths) for k in range(len(lengths))]
        self._tables = [stage_sigmas(network, steps, start_steps // 2) for steps in self.steps]

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def stage(self, fraction: float) -> int:
        return next((k for k, end in enumerate(self.ends) if fraction < end), len(self.steps) - 1)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0 = batch.images
        stage = self.stage(progress.fraction)
        steps, table = self.steps[stage], self._tables[stage]
        position = stratified(len(x_0), generator)
        others = len(table) - steps
        share = self.rehearsed if others else 0.0
        index = (
            torch.where(
                position < share, position / max(share, 1e-9) * others + steps, (position - share) / (1 - share) * steps
            )
            .long()
            .clamp(max=len(table) - 1)
        )
        s, s1, s2 = moved(table[index], x_0.device).unbind(1)
        x = x_0 + per_image(s) * randn(tuple(x_0.shape), generator, x_0.device)
        with torch.no_grad():
            target = two_steps(self.teacher, x, (s, s1, s2), batch.condition)
        estimate = self.network(x, s, batch.condition)
        error = (estimate - target).square().mean(dim=(1, 2, 3))
        w = 1 + 1 / s**2 if self.weight == "v" else (1 / s**2).clamp(min=1)
        return LossTerms(loss=w * error, sigma=s, estimate=estimate)

    @torch.no_grad()
    def update(self, progress: Progress) -> None:
        now, after = (self.stage(step / progress.total_steps) for step in (progress.step, progress.step + 1))
        if self.average is not None:
            size = progress.images / max(progress.step, 1) or 64
            w = 1 - 0.5 ** (size / (self.average_kimg * 1000))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), w)
        if after > now and progress.step + 1 < progress.total_steps:
            source = self.average if self.average is not None else self.network
            self.teacher.load_state_dict(source.state_dict())
            if self.average is not None:
                self.network.load_state_dict(source.state_dict())


def stage_sigmas(student: DDIMStudent, steps: int, most: int) -> Tensor:
    times, halves, all_ = (student.timesteps(n) for n in (steps, 2 * steps, most))
    sigma = torch.cat([student.space.table, torch.zeros(1, dtype=torch.float64)])
    rows = [(t, halves[2 * i + 1], (*times, -1)[i + 1]) for i, t in enumerate(times)]
    rows += [(t, t, -1) for t in all_ if t not in times]
    return sigma[torch.tensor(rows)].float()
