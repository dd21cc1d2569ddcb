"""Two calls of a network as one, where neither needs the other's result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.teachers.interfaces import Condition


class Rider:
    """Images that go along with another call of a network: x [B,C,H,W] at noise levels sigma [B].

    `images`: what the network made of them [B,C,H,W], with its gradient; None until they have gone along.
    """

    def __init__(self, x: Tensor, sigma: Tensor, condition: Condition) -> None:
        self.x, self.sigma, self.condition = x, sigma, condition
        self.images: Tensor | None = None


@contextmanager
def joined(network: nn.Module, rider: Rider) -> Iterator[None]:
    """Within, the first call of `network` with a gradient takes the rider's images along.

    A batch of n + m images costs less than one of n and one of m. The caller of that call sees its own images alone.
    """
    aboard = False

    def board(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal aboard
        if rider.images is not None or aboard or not torch.is_grad_enabled():
            return None
        aboard = True
        x, sigma, condition = args
        labels = None if condition.labels is None else torch.cat([condition.labels, _labels(rider)])
        return torch.cat([x, rider.x]), torch.cat([sigma, rider.sigma]), Condition(labels=labels)

    def leave(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not aboard or rider.images is not None:
            return None
        own, rider.images = output.split([len(output) - len(rider.x), len(rider.x)])
        return own

    handles = [network.register_forward_pre_hook(board), network.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _labels(rider: Rider) -> Tensor:
    assert rider.condition.labels is not None
    return rider.condition.labels


def has_dropout(network: nn.Module) -> bool:
    """Whether a call draws masks, which are others in a larger batch."""
    return any(isinstance(each, nn.Dropout) and each.p > 0 for each in network.modules())
