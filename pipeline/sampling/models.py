"""Teachers under a solver and students at some number of steps, as Samplers that evaluation can measure."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.interfaces import Noise
from fewstep.pipeline.sampling.grammar import SamplerName
from fewstep.students.consistency import ConsistencyModel, sample_consistency
from fewstep.teachers.denoiser import VPDenoiser
from fewstep.teachers.solvers import (
    Draw,
    ddim_scheduler,
    ddpm_timesteps,
    dpmsolver_scheduler,
    heun_sigmas,
    sample_ddpm,
    sample_heun,
    sample_scheduler,
    unipc_scheduler,
)


def prepare_to_sample(network: torch.nn.Module) -> None:
    """Put a network's weights into channels_last memory, in which convolutions are faster, and let it be cancelled."""
    network.to(memory_format=torch.channels_last)
    network.register_forward_pre_hook(stop_if_cancelled)


class ModelSampler:
    """A network with a way to sample from it; see `fewstep.eval.interfaces.Sampler`.

    subject: "teacher" or a student's name; kind: "teacher" or "student"; sampler: "ddim:50", "2".
    """

    num_classes: int | None = None

    def __init__(
        self,
        subject: str,
        kind: str,
        sampler: str,
        label: str,
        network: torch.nn.Module,
        shape: tuple[int, int, int],
        nfe: int,
        schedule: list[float],
        function: Callable[[Draw], Tensor],
    ) -> None:
        self.name, self.label = f"{subject}@{sampler}", label
        self.subject, self.kind = subject, kind
        self.nfe, self.schedule, self.shape = nfe, schedule, shape
        self.network_parameters = sum(parameter.numel() for parameter in network.parameters())
        self._function, self._device = function, next(network.parameters()).device

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B,C,H,W] in [-1, 1] on the network's device; `labels` is not used."""
        return self._function(lambda: noise.draw().to(self._device))


def build_sampler(name: SamplerName, teacher: VPDenoiser, students: Mapping[str, ConsistencyModel]) -> ModelSampler:
    """The sampler of a run that `name` stands for; `students` by name."""
    if name.solver:
        return teacher_sampler(teacher, name.solver, name.steps)
    return student_sampler(students[name.subject], name.steps, name=name.subject)


def teacher_sampler(teacher: VPDenoiser, solver: str, steps: int) -> ModelSampler:
    """The teacher under one of SOLVERS."""
    label, nfe, schedule, function = SOLVERS[solver](teacher, steps)
    place = ("teacher", "teacher", f"{solver}:{steps}")
    return ModelSampler(*place, label, teacher.unet, teacher.shape, nfe, schedule, function)


def student_sampler(
    student: ConsistencyModel, steps: int, sigmas: list[float] | None = None, name: str = "student"
) -> ModelSampler:
    """The student at `steps` steps of its own grid, or at the given noise levels; `name` is its name in the run.

    UserError: steps that the grid does not have.
    """
    most = student.grid.num_train_timesteps - 1
    if sigmas is None and not 1 <= steps <= most:
        raise UserError("steps", steps, f"this student makes 1 to {most} steps")
    sigmas = sigmas or student.step_sigmas(steps)
    title = "Student" if name == "student" else name
    return ModelSampler(
        name,
        "student",
        str(steps),
        f"{title}, {steps} step{'s' if steps > 1 else ''}",
        student,
        student.shape,
        steps,
        sigmas,
        lambda draw: sample_consistency(student, sigmas, draw),
    )


Built = tuple[str, int, list[float], Callable[[Draw], Tensor]]


def _ddpm(teacher: VPDenoiser, steps: int) -> Built:
    timesteps = [float(t) for t in ddpm_timesteps(teacher, steps)]
    return f"Teacher, DDPM, {steps} steps", steps, timesteps, lambda draw: sample_ddpm(teacher, steps, draw)


def _scheduled(name: str, make: Callable[[VPDenoiser, int], Any], teacher: VPDenoiser, steps: int) -> Built:
    """A deterministic diffusers scheduler."""
    scheduler = make(teacher, steps)
    timesteps = scheduler.timesteps.double().tolist()
    label = f"Teacher, {name}, {steps} steps"
    return label, steps, timesteps, lambda draw: sample_scheduler(teacher, scheduler, draw)


def _heun(teacher: VPDenoiser, steps: int) -> Built:
    sigmas = heun_sigmas(teacher, steps).tolist()
    label = f"Teacher, Heun, {steps} steps"
    return label, 2 * steps - 1, sigmas, lambda draw: sample_heun(teacher, steps, draw)


SOLVERS: dict[str, Callable[[VPDenoiser, int], Built]] = {
    "ddpm": _ddpm,
    "ddim": partial(_scheduled, "DDIM", ddim_scheduler),
    "dpmsolver++": partial(_scheduled, "DPM-Solver++", dpmsolver_scheduler),
    "unipc": partial(_scheduled, "UniPC", unipc_scheduler),
    "heun": _heun,
}
