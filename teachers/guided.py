"""Classifier-free guidance: a denoiser made of a conditional one with and without the class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.teachers.interfaces import NONE, Condition
from fewstep.teachers.preconditioned import Preconditioned


class Guided(nn.Module):
    """D_w = D(x; none) + w*(D(x; class) - D(x; none)) (Ho & Salimans 2022, eq. 6, whose w is one less).

    Two rows of the network for each image, in one batch; without labels it is D(x; none). `model` must know no class
    (`Space.null_class`).
    """

    def __init__(self, model: Preconditioned, guidance: float) -> None:
        super().__init__()
        assert model.space.num_classes is not None
        assert model.space.null_class
        self.model, self.guidance = model, guidance
        self.space, self.scaling = model.space, model.scaling

    def forward(self, x: Tensor, sigma: Tensor | float, condition: Condition = NONE) -> Tensor:
        """Estimate x0 [B,C,H,W] float32 from x [B,C,H,W] and sigma [B], or one of all images; not clamped."""
        if condition.labels is None:
            return self.model(x, sigma)
        none = torch.full_like(condition.labels, self.space.num_classes or 0)
        labels = torch.cat([none, condition.labels])
        sigma = sigma.repeat(2) if isinstance(sigma, Tensor) else sigma
        without, with_class = self.model(x.repeat(2, 1, 1, 1), sigma, Condition(labels=labels)).chunk(2)
        return without + self.guidance * (with_class - without)

    def know(self, sigmas: Sequence[float]) -> None:
        """See `Preconditioned`."""
        self.model.know(sigmas)

    def clone(self) -> Preconditioned:
        """A copy of the model itself, without guidance, with weights of its own: what learns other images is it."""
        return self.model.clone()

    @property
    def network(self) -> nn.Module:
        """The network of both."""
        return self.model.network

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device
