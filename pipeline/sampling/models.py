"""Teachers under a solver and students at some number of steps, as Samplers that evaluation can measure."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.interfaces import Noise
from fewstep.pipeline.sampling.grammar import SamplerName, in_steps
from fewstep.students.consistency import plan_consistency
from fewstep.students.interfaces import Student
from fewstep.teachers.guided import Guided
from fewstep.teachers.interfaces import Condition
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.solvers import SOLVERS, Planned


def prepare_to_sample(model: torch.nn.Module) -> None:
    """Put a model's weights into channels_last memory, in which convolutions are faster, and let it be cancelled."""
    model.to(memory_format=torch.channels_last)
    model.register_forward_pre_hook(stop_if_cancelled)


class ModelSampler:
    """A model with a way to sample from it; see `fewstep.eval.interfaces.Sampler`."""

    def __init__(self, name: str, label: str, model: Preconditioned | Guided, planned: Planned) -> None:
        self.name, self.label, self.subject = name, label, name.partition("@")[0]
        self.kind = "student" if isinstance(model, Student) else "teacher"
        guided = isinstance(model, Guided)
        self.nfe, self.schedule = planned.nfe * (2 if guided else 1), planned.schedule
        self.shape, self.num_classes = model.space.shape, model.space.num_classes
        self.network_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.networks, self._model, self._planned = (model.model if guided else model,), model, planned

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B,C,H,W] in [-1, 1] on the model's device; an unconditional model ignores `labels`."""
        device = self._model.device
        condition = Condition(labels=None if labels is None else labels.to(device))
        return self._planned.sample(self._model, lambda: noise.draw().to(device), condition)


def build_sampler(name: SamplerName, teacher: Preconditioned | Guided, students: Mapping[str, Student]) -> ModelSampler:
    """The sampler of a run that `name` stands for; `students` by name."""
    if name.solver:
        return teacher_sampler(teacher, name.solver, name.steps)
    return student_sampler(students[name.subject], name.steps, name=name.subject)


def teacher_sampler(teacher: Preconditioned | Guided, solver: str, steps: int) -> ModelSampler:
    """The teacher under one of SOLVERS."""
    planned = SOLVERS[solver].plan(teacher.space, steps)
    label = f"Teacher, {SOLVERS[solver].label}, {in_steps(steps)}"
    return ModelSampler(f"teacher@{solver}:{steps}", label, teacher, planned)


def student_sampler(
    student: Student, steps: int, sigmas: list[float] | None = None, name: str = "student"
) -> ModelSampler:
    """The student as it makes `steps` steps, or a consistency model at noise levels; `name` is its name in the run.

    UserError: steps that the student does not have.
    """
    if sigmas is None and not 1 <= steps <= student.most_steps:
        raise UserError("steps", steps, f"this student makes 1 to {student.most_steps} steps")
    label = f"{'Student' if name == 'student' else name}, {in_steps(steps)}"
    planned = student.plan(steps) if sigmas is None else plan_consistency(sigmas)
    return ModelSampler(f"{name}@{steps}", label, student, planned)
