"""The one shape of every model: a network, a scaling, a space."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.teachers.interfaces import NONE, Condition, Space, one_each, per_image
from fewstep.teachers.scaling import Scaling

MOST_KNOWN = 4096  # noise levels whose factors a model keeps


class Preconditioned(nn.Module):
    """D(x; sigma) = c_skip*x + c_out*F(c_in*x, c_noise) of a diffusers network: a teacher, a student, the next teacher.

    Of an output with more channels than images (a learned variance) the first are used.
    """

    def __init__(self, network: nn.Module, scaling: Scaling, space: Space) -> None:
        super().__init__()
        self.network, self.scaling, self.space = network, scaling, space
        self._known: dict[float, tuple[float, ...]] = {}

    def forward(self, x: Tensor, sigma: Tensor | float, condition: Condition = NONE) -> Tensor:
        """Estimate x0 [B,C,H,W] float32 from x [B,C,H,W] and sigma [B], or one of all images; not clamped."""
        c_skip, c_out, c_in, c_noise = self._factors(sigma)
        output = self._output(x, c_in, one_each(c_noise, x), condition)
        if isinstance(sigma, Tensor):
            return c_skip * x + c_out * output
        return torch.add(c_skip * x, output, alpha=c_out)

    def parts(self, x: Tensor, sigma: Tensor, condition: Condition = NONE) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip [B], c_out [B] and F(c_in*x, c_noise) [B,C,H,W], of which D is made; F in the dtype of x."""
        c_skip, c_out, c_in, c_noise = self.scaling(sigma)
        return c_skip, c_out, self._output(x, per_image(c_in), c_noise, condition)

    def _factors(self, sigma: Tensor | float) -> tuple[Any, Any, Any, Any]:
        """c_skip, c_out, c_in as x [B,C,H,W] is scaled by them, and c_noise: numbers where sigma is one.

        Those are kept: a sampler comes by the same noise levels with every batch, and at small batches working them out
        takes as long as a layer of the network.
        """
        if isinstance(sigma, Tensor):
            c_skip, c_out, c_in, c_noise = self.scaling(sigma)
            return per_image(c_skip), per_image(c_out), per_image(c_in), c_noise
        self.know([sigma])
        return self._known[sigma]  # type: ignore[return-value]

    def know(self, sigmas: Sequence[float]) -> None:
        """Work out the factors of all these noise levels that are not known, at once."""
        new = [sigma for sigma in sigmas if sigma not in self._known]
        if not new:
            return
        if len(self._known) + len(new) > MOST_KNOWN:
            self._known.clear()
        factors = (values.tolist() for values in self.scaling(torch.tensor(new)))
        self._known.update(zip(new, zip(*factors, strict=True), strict=True))

    def _output(self, x: Tensor, c_in: Tensor | float, c_noise: Tensor, condition: Condition) -> Tensor:
        labels = {} if self.space.num_classes is None else {"class_labels": self._labels(x, condition)}
        output, channels = self.network(c_in * x, c_noise, **labels).sample, self.space.shape[0]
        return (output if output.shape[1] == channels else output[:, :channels]).to(x.dtype)

    def _labels(self, x: Tensor, condition: Condition) -> Tensor:
        """The rows of the network's embedding of classes, [B]; the one after all classes means none."""
        if condition.labels is not None:
            return condition.labels
        classes = self.space.num_classes or 0
        if not self.space.null_class:
            raise UserError("labels", None, f"this model is class-conditional: give labels 0 to {classes - 1}")
        return torch.full((len(x),), classes, device=x.device)

    def clone(self) -> Self:
        """A copy with weights of its own."""
        return copy.deepcopy(self)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device
