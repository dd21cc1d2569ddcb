"""Teachers under a solver and students at some number of steps, as Samplers that evaluation can measure."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.interfaces import Noise
from fewstep.pipeline.sampling.grammar import SamplerName
from fewstep.students.consistency import ConsistencyModel, sample_consistency
from fewstep.teachers.interfaces import Condition
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.solvers import SOLVERS, Sample


def prepare_to_sample(model: torch.nn.Module) -> None:
    """Put a model's weights into channels_last memory, in which convolutions are faster, and let it be cancelled."""
    model.to(memory_format=torch.channels_last)
    model.register_forward_pre_hook(stop_if_cancelled)


class ModelSampler:
    """A model with a way to sample from it; see `fewstep.eval.interfaces.Sampler`."""

    def __init__(
        self, name: str, label: str, model: Preconditioned, nfe: int, schedule: Sequence[float], sample: Sample
    ) -> None:
        self.name, self.label, self.subject = name, label, name.partition("@")[0]
        self.kind = "student" if isinstance(model, ConsistencyModel) else "teacher"
        self.nfe, self.schedule = nfe, schedule
        self.shape, self.num_classes = model.space.shape, model.space.num_classes
        self.network_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.networks, self._model, self._sample = (model,), model, sample

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B,C,H,W] in [-1, 1] on the model's device; an unconditional model ignores `labels`."""
        device = self._model.device
        condition = Condition(labels=None if labels is None else labels.to(device))
        return self._sample(self._model, lambda: noise.draw().to(device), condition)


def build_sampler(name: SamplerName, teacher: Preconditioned, students: Mapping[str, ConsistencyModel]) -> ModelSampler:
    """The sampler of a run that `name` stands for; `students` by name."""
    if name.solver:
        return teacher_sampler(teacher, name.solver, name.steps)
    return student_sampler(students[name.subject], name.steps, name=name.subject)


def teacher_sampler(teacher: Preconditioned, solver: str, steps: int) -> ModelSampler:
    """The teacher under one of SOLVERS."""
    planned = SOLVERS[solver].plan(teacher.space, steps)
    label = f"Teacher, {SOLVERS[solver].label}, {steps} step{'s' if steps > 1 else ''}"
    return ModelSampler(f"teacher@{solver}:{steps}", label, teacher, planned.nfe, planned.schedule, planned.sample)


def student_sampler(
    student: ConsistencyModel, steps: int, sigmas: list[float] | None = None, name: str = "student"
) -> ModelSampler:
    """The student at `steps` steps of its own grid, or at the given noise levels; `name` is its name in the run.

    UserError: steps that the grid does not have.
    """
    most = student.grid.num_train_timesteps - 1
    if sigmas is None and not 1 <= steps <= most:
        raise UserError("steps", steps, f"this student makes 1 to {most} steps")
    levels = sigmas or student.step_sigmas(steps)
    label = f"{'Student' if name == 'student' else name}, {steps} step{'s' if steps > 1 else ''}"
    function: Sample = lambda model, draw, condition: sample_consistency(model, levels, draw, condition)  # noqa: E731
    return ModelSampler(f"{name}@{steps}", label, student, steps, levels, function)
