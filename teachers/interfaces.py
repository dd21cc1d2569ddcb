"""What every model, objective and solver shares: a `Denoiser` in a `Space` under a `Condition`, and an `Objective`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where a model's x = x0 + sigma*eps lives.

    shape: (C, H, W) of x and of its noise. sigma_min, sigma_max: the noise levels it was trained on. table: the
    ascending sigmas of a discrete schedule, float64 [T], or None. num_classes: None for an unconditional model, else
    labels run from 0 to num_classes - 1. null_class: whether it can be asked for no class too, as guidance does. clamp:
    the range of x0, which samplers hold their estimates to; None: none. threshold: dynamic thresholding in place of
    that, as the ratio of its quantile and the largest bound (Saharia 2022, section 2.3); None: none.
    """

    shape: tuple[int, int, int]
    sigma_min: float
    sigma_max: float
    table: Tensor | None = field(default=None, compare=False)
    num_classes: int | None = None
    null_class: bool = False
    clamp: tuple[float, float] | None = (-1.0, 1.0)
    threshold: tuple[float, float] | None = None

    def clamped(self, x_0: Tensor) -> Tensor:
        """Hold an estimate of x0 [B,C,H,W] to the space's range, each image alone."""
        if self.threshold is not None:
            ratio, most = self.threshold
            bounds = torch.stack([image.abs().flatten().quantile(ratio) for image in x_0])
            s = per_image(bounds.clamp(1, most))
            return x_0.clamp(-s, s) / s
        return x_0 if self.clamp is None else x_0.clamp(*self.clamp)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What images are asked to be: labels int64 [B], or None: no class. An unconditional model ignores it."""

    labels: Tensor | None = None

    def of(self, images: slice) -> "Condition":
        """The condition of some images of the batch."""
        return Condition(labels=None if self.labels is None else self.labels[images])


NONE = Condition()


def some_class(space: Space, num: int, device: torch.device) -> Condition:
    """A condition with which any model of a space can be called, for `num` images: the first class, if it has any."""
    return NONE if space.num_classes is None else Condition(labels=torch.zeros(num, dtype=torch.int64, device=device))


@runtime_checkable
class Denoiser(Protocol):
    """All that solvers, bridges, objectives and conversion see of a model: D(x; sigma), an estimate of x0."""

    space: Space

    def __call__(self, x: Tensor, sigma: Tensor | float, condition: Condition = NONE) -> Tensor:
        """Estimate x0 [B,C,H,W] from x = x0 + sigma*eps [B,C,H,W] and sigma [B], or one of all images; not clamped."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training images [B,C,H,W] float32 in [-1, 1] and what they are."""

    images: Tensor
    condition: Condition = NONE


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
    """Losses of a batch, already weighted [B], the noise levels they were taken at [B], and what to log.

    `log` holds detached tensors of one number each; they are read when they are logged and not before. `estimate`: what
    the trained network made of x0 [B,C,H,W], with its gradient, for an objective around this one; None: none is kept.
    `shown`: the losses [B] that curves are drawn of, where others are added to them; None: `loss`.
    """

    loss: Tensor
    sigma: Tensor
    estimate: Tensor | None = None
    shown: Tensor | None = None
    log: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Network evaluations per training image of an average step, for the cost of an objective.

    student: with a backward pass, of the student or another network that is trained; target: of those without one;
    jvp: with their derivative with respect to the inputs alone, in either mode; smaller: of a smaller network, all
    together, in forward passes of the student's.
    """

    student: float
    target: float = 0
    teacher: float = 0
    jvp: float = 0
    smaller: float = 0

    @property
    def forward_equivalents(self) -> float:
        """What they cost in forward passes of one network of that size.

        A student's evaluation counts 3: its backward pass takes twice the arithmetic of its forward pass. A
        Jacobian-vector product counts 2: it carries a tangent beside each value, forwards.
        """
        return 3 * self.student + self.target + self.teacher + 2 * self.jvp + self.smaller


class Objective(nn.Module, ABC):
    """One way to train: the trained network and any target network are submodules, a teacher is not.

    The training loop wraps the objective itself for several processes and calls only it, so that gradients are
    synchronised; `network` is the module that is trained.
    """

    cost: Evaluations
    network: nn.Module
    partial = False
    """Whether there are steps that leave some parameters without a gradient."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """The loss of one slice of the batch; every random number comes from `generator`, a CPU generator."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups: {"params": ...} with its own options of Adam, and `lr_scale` of the learning rate."""
        return [{"params": list(self.network.parameters())}]

    def pace(self, progress: Progress) -> float:
        """What the learning rate is multiplied by at this point, beside its course and the scales of the groups."""
        return 1.0

    def averaged(self) -> nn.Module:
        """The module whose running average is what training returns."""
        return self.network

    def update(self, progress: Progress) -> None:
        """Called after each optimizer step: target networks and stages move here. Nothing by default."""


def randn(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal float32 numbers, drawn on the generator's device and moved to `device`."""
    return moved(torch.randn(shape, generator=generator, device=generator.device), device)


def stratified(num: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """`num` numbers in [0, 1], one uniform in each of `num` equal parts, in random order [num].

    Leaves expectations as they are and lowers their variance (Kingma 2021, appendix I.1).
    """
    parts = torch.randperm(num, generator=generator)
    return ((parts + torch.rand(num, generator=generator, dtype=dtype)) / num).clamp(1e-9, 1 - 1e-9)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; a GPU is not waited for, and computes on while the next step is prepared."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Following:
    """A module's tensors and those of one that it follows, looked up once: that takes longer than to move them.

    flat: the parameters of both in one piece each, where they lie so.
    """

    def __init__(self, average: nn.Module, network: nn.Module, flat: tuple[Tensor, Tensor] | None = None) -> None:
        self._mine, self._theirs = list[Tensor](average.parameters()), list[Tensor](network.parameters())
        if flat is not None:
            self._mine, self._theirs = [flat[0]], [flat[1]]
        self._buffers = list(zip(average.buffers(), network.buffers(), strict=True))

    @torch.no_grad()
    def move(self, weight: float) -> None:
        """Move the parameters by a share of the way; buffers become the same."""
        torch._foreach_lerp_(self._mine, self._theirs, weight)
        for own, theirs in self._buffers:
            own.copy_(theirs)


def per_image(values: Tensor) -> Tensor:
    """[B] -> [B,1,1,1], to scale images by a number each."""
    return values.reshape(-1, 1, 1, 1)


def one_each(sigma: Tensor | float, x: Tensor) -> Tensor:
    """The noise level of each image, [B], where that of all images x [B,C,H,W] may be given as one number."""
    return sigma if isinstance(sigma, Tensor) else torch.full((len(x),), sigma, device=x.device)
