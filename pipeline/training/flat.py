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
    for each, view in zip(tensors, _views(flat, tensors), strict=True):
        each.data = view
    return flat


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a tensor [N], one after the other, in the shapes and layouts of these."""
    parts = flat.split([each.numel() for each in tensors])
    return [part.as_strided(each.shape, each.stride()) for each, part in zip(tensors, parts, strict=True)]


def _in_order(tensor: Tensor) -> Tensor:
    """The numbers of a tensor without gaps as they lie in memory, [N]."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


class Flat:
    """The trained weights of a group of parameters as one parameter, for the optimizer.

    A group has a gradient in a step or none; a weight of it without one has a gradient of zeros then. The gradient of
    the whole is the same memory in every step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parts = [each for each in parameters if each.requires_grad]
        self.whole = nn.Parameter(flattened(self.parts))
        self._gradient = torch.zeros_like(self.whole, requires_grad=False)
        self._views = _views(self._gradient, self.parts)

    def gather(self) -> Tensor | None:
        """Take the gradients of the weights away from them into that of the whole, which is returned."""
        there = [(view, each.grad) for view, each in zip(self._views, self.parts, strict=True) if each.grad is not None]
        self.whole.grad = None
        if there:
            if len(there) < len(self.parts):
                self._gradient.zero_()
            torch._foreach_copy_(*map(list, zip(*there, strict=True)))  # type: ignore[arg-type]
            self.whole.grad = self._gradient
            for each in self.parts:
                each.grad = None
        return self.whole.grad

    @torch.no_grad()
    def clip(self, most: float) -> Tensor:
        """Gather the gradient and hold its norm to `most`; the norm before, 0 without a gradient."""
        gradient = self.gather()
        if gradient is None:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(gradient)
        if gradient.is_cuda:  # which is not to be waited for
            nn.utils.clip_grads_with_norm_(self.whole, most, norm)
        elif norm + 1e-6 > most:
            gradient.mul_(most / (float(norm) + 1e-6))
        return norm

    def holds(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether it is of these very weights, in their order."""
        return len(parameters) == len(self.parts) and all(map(is_, parameters, self.parts))
