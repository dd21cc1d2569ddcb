"""Progressive distillation (Salimans & Ho 2022): a student learns to make two of its teacher's DDIM steps in one.

At every stage the steps are halved, and the averaged student of one stage is the teacher of the next.
"""

from typing import Self

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
"""The share of draws at times of earlier stages. Without them all times but the last stage's would be forgotten."""
HALFLIVES = 16
"""Half-lives of the average in a stage. On the digits FD at 2 and 4 steps is 3.3 and 3.3, without it 5.2 and 5.6."""


def two_steps(
    teacher: Denoiser, x: Tensor, sigmas: tuple[Tensor, Tensor, Tensor], condition: Condition = NONE
) -> Tensor:
    """The x0 with which one DDIM step from s to s2 ends where the teacher's two do, from s to s1 to s2; [B,C,H,W].

    x = x0 + s*eps; `sigmas` are s >= s1 > s2 >= 0, [B] each. As a step is x' = D + (s'/s)*(x - D), the paper's target,
    (x_s2 - (s2/s)*x)/(1 - s2/s) (algorithm 2), is a mean of the teacher's two estimates. In this form the noise,
    20,000 times the image in the first step, has no part.
    """
    s, s1, s2 = sigmas
    first = teacher(x, s, condition)
    second = teacher(first + per_image(s1 / s) * (x - first), s1, condition)
    share = per_image((1 - s2 / s1) / (1 - s2 / s))
    return share * second + (1 - share) * first


def stage_sigmas(student: DDIMStudent, steps: int, start_steps: int) -> Tensor:
    """(s, s1, s2) of what is learned in the stage with `steps` steps, float32 [start_steps / 2, 3].

    First the steps themselves, each with its middle: the trailing timesteps of a call with twice as many. Then the
    other times of the first stage, at which the teacher steps to 0 at once, as (s, s, 0): it is its own target there.
    """
    table = torch.cat([student.space.table, torch.zeros(1, dtype=torch.float64)])  # type: ignore[list-item]
    halves, first = student.timesteps(2 * steps), student.timesteps(start_steps // 2)
    times = halves[::2]
    rows = list(zip(times, halves[1::2], [*times[1:], -1], strict=True))
    rows += [(time, time, -1) for time in first if time not in times]
    return table[torch.tensor(rows)].float()


class ProgressiveDistillation(Objective):
    """Train `network` to make two steps of `teacher` in one, from half of `start_steps` steps down to one.

    The stages are equally long; each begins from the average of the one before, as student and as teacher. The loss is
    that of v, (1 + 1/s^2)*|D(x; s) - target|^2 (the paper's "SNR + 1"). As a quarter of the draws are of times of
    earlier stages, the student of one step makes 2, 4 and more too.
    """

    cost = Evaluations(student=1, teacher=2)

    def __init__(self, network: DDIMStudent, start_steps: int) -> None:
        super().__init__()
        self.network = network
        self.teacher = network.clone().requires_grad_(False).eval()  # of this module, as a checkpoint has to hold them
        self.average = self.teacher.clone()
        self.stages = [2**power for power in reversed(range(start_steps.bit_length() - 1))]
        self._sigmas = [stage_sigmas(network, steps, start_steps) for steps in self.stages]

    def stage(self, step: int, total_steps: int) -> int:
        """The index in `stages` at an optimizer step."""
        return min(step * len(self.stages) // total_steps, len(self.stages) - 1)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0, stage = batch.images, self.stage(progress.step, progress.total_steps)
        drawn = self._sigmas[stage][draw_rows(len(x_0), self.stages[stage], len(self._sigmas[stage]), generator)]
        s, s1, s2 = moved(drawn, x_0.device).unbind(1)
        x = x_0 + per_image(s) * randn(tuple(x_0.shape), generator, x_0.device)
        with torch.no_grad():
            target = two_steps(self.teacher, x, (s, s1, s2), batch.condition)
        estimate = self.network(x, s, batch.condition)
        error = (estimate - target).square().mean(dim=(1, 2, 3))
        return LossTerms(loss=(1 + 1 / s**2) * error, sigma=s, estimate=estimate)

    @torch.no_grad()
    def update(self, progress: Progress) -> None:
        """Move the average; at the end of a stage it becomes the student and the teacher."""
        step, total = progress.step, progress.total_steps
        weight = 1 - 0.5 ** (HALFLIVES * len(self.stages) / total)
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), weight)
        if self.stage(step + 1, total) > self.stage(step, total):
            for model in (self.network, self.teacher):
                model.load_state_dict(self.average.state_dict())

    def train(self, mode: bool = True) -> Self:
        """As in torch; the teacher stays without dropout."""
        super().train(mode)
        self.teacher.eval()
        return self


def draw_rows(num: int, steps: int, rows: int, generator: torch.Generator) -> Tensor:
    """`num` stratified indices of the rows of `stage_sigmas`, uniform over the steps and over those rehearsed."""
    rehearsed = REHEARSED if rows > steps else 0.0
    position = stratified(num, generator)
    own, earlier = (position - rehearsed) / (1 - rehearsed) * steps, position / REHEARSED * (rows - steps)
    found = torch.where(position < rehearsed, steps + earlier, own)
    return found.long().clamp(max=rows - 1)
