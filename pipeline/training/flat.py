"""Weights of many layers in one piece of memory, so that a step passes over them at once.

Of a small network whose convolutions take a third of a millisecond, optimizer, clipping and average one tensor after
the other take as long as several layers.
"""

from collections.abc import Iterable, Sequence
from operator import is_

import torch
from torch import Tensor, nn


@torch.no_grad()
def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor [N] that holds the numbers of all; each becomes a view of its part, in its own layout."""
    flat = torch.cat([_in_order(each) for each in tensors])
    for each, part in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        each.data = part.as_strided(each.shape, each.stride())
    return flat


def _in_order(tensor: Tensor) -> Tensor:
    """The numbers of a tensor without gaps as they lie in memory, [N]."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


class Flat:
    """The trained weights of a group of parameters as one parameter, for the optimizer.

    A group has a gradient in a step or none; a weight of it without one has a gradient of zeros then.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parts = [each for each in parameters if each.requires_grad]
        self.whole = nn.Parameter(flattened(self.parts))

    def gather(self) -> Tensor | None:
        """Take the gradients of the weights away from them into that of the whole, which is returned."""
        gradients = [each.grad for each in self.parts]
        self.whole.grad = None
        if any(each is not None for each in gradients):
            self.whole.grad = torch.cat([_as(*each) for each in zip(gradients, self.parts, strict=True)])
            for each in self.parts:
                each.grad = None
        return self.whole.grad

    def holds(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether it is of these very weights, in their order."""
        return len(parameters) == len(self.parts) and all(map(is_, parameters, self.parts))


def _as(gradient: Tensor | None, weight: Tensor) -> Tensor:
    """A gradient's numbers in the order in which its weight lies in memory, [N]."""
    if gradient is None:
        return torch.zeros(weight.numel(), device=weight.device)
    if gradient.stride() != weight.stride():
        gradient = torch.empty_like(weight).copy_(gradient)
    return _in_order(gradient)
