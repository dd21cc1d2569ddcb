"""The calls of networks that a training makes, written down while it makes them."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fewstep.teachers.interfaces import Objective, Progress

Purpose = Literal["weights", "inputs", "output", "derivative"]
"""What a call is for: gradients of weights or of inputs alone, the output alone, or a forward derivative with it."""


@dataclass(frozen=True)
class Call:
    """One evaluation of a batch of so many images."""

    network: nn.Module
    images: int
    purpose: Purpose


class Calls:
    """Notes each call of networks of a kind, step by step of a training."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind
        self.images = Counter[str]()
        """Images evaluated for each purpose, of all steps."""
        self.steps = 0
        self._now: list[Call] = []
        self._taken = deque[list[Call]]()

    def follow(self, objective: Objective) -> None:
        """Take each call of its `update` for the end of a step; within it contenders may take their turns."""
        update = objective.update

        def updated(progress: Progress) -> None:
            self._taken.append(self._now)
            self._now = []
            update(progress)
            self._now.clear()  # of contenders

        objective.update = updated

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within, calls are noted."""
        forward = self.kind.forward

        def noting(network: nn.Module, sample: Tensor, *args: Any, **options: Any) -> Any:  # noqa: ANN401
            self._now.append(Call(network, len(sample), _purpose(network, sample)))
            return forward(network, sample, *args, **options)

        self.kind.forward = noting
        try:
            yield
        finally:
            self.kind.forward = forward

    def next(self) -> list[Call]:
        """The calls of the first step that has not been asked for."""
        taken = self._taken.popleft()
        for each in taken:
            self.images[each.purpose] += each.images
        self.steps += 1
        return taken

    def per_image(self, batch_size: int) -> dict[str, float]:
        """Evaluations for each image of a step's batch, by purpose."""
        return {name: self.images[name] / self.steps / batch_size for name in get_args(Purpose)}


def _purpose(network: nn.Module, sample: Tensor) -> Purpose:
    if forward_ad.unpack_dual(sample).tangent is not None:
        return "derivative"
    if not torch.is_grad_enabled():
        return "output"
    if next(network.parameters()).requires_grad:
        return "weights"
    return "inputs" if sample.requires_grad else "output"
