"""The two interfaces every teacher, objective, solver and conversion shares: `Denoiser` and `Objective`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Denoiser(Protocol):
    """What an objective, a solver or a conversion sees of a teacher: D(x; sigma), an estimate of x0.

    `shape` is (C, H, W); `sigma_min` and `sigma_max` bound the noise levels it was trained on; `sigmas` [T] is
    the ascending table of a discrete schedule, or None; `num_classes` is None for an unconditional network,
    else labels run from 0 to num_classes - 1 and num_classes means "no label".
    """

    shape: tuple[int, int, int]
    sigma_min: float
    sigma_max: float
    sigmas: Tensor | None
    num_classes: int | None

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Estimate x0 [B,C,H,W] in [-1, 1] from x = x0 + sigma*eps [B,C,H,W] and sigma [B]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training images [B,C,H,W] float32 in [-1, 1] and their labels [B] int64, or None."""

    images: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands: `step` of `total_steps` (counted from 0), `images` seen before this step."""

    step: int
    total_steps: int
    images: int

    @property
    def fraction(self) -> float:
        """Share of training done, 0 up to, not including, 1."""
        return self.step / self.total_steps


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Losses of a batch, already weighted [B], the noise levels they were taken at [B], and numbers to log."""

    loss: Tensor
    sigma: Tensor
    log: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Network evaluations per training image, for the cost of an objective."""

    student: int
    target: int = 0
    teacher: int = 0
    jvp: int = 0


class Objective(nn.Module):
    """One way to train: the trained network and any target network are submodules, a teacher is not.

    The training loop wraps the objective itself for several processes and calls only it, so that gradients are
    synchronised; `network` is the module whose parameters are trained and averaged.
    """

    cost: Evaluations
    network: nn.Module

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """The loss of one slice of the batch; every random number comes from `generator`, a CPU generator."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def update(self, progress: Progress) -> None:
        """Called after each optimizer step: target networks and stages move here. Nothing by default."""


def randn(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal float32 numbers, drawn on the generator's device and moved to `device`."""
    return moved(torch.randn(shape, generator=generator, device=generator.device), device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; a GPU is not waited for, and computes on while the next step is prepared."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def per_image(values: Tensor) -> Tensor:
    """[B] -> [B,1,1,1], to scale images by a number each."""
    return values.reshape(-1, 1, 1, 1)
