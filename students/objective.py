"""Discrete consistency objectives: loss = weight(t, r) * distance(f(x_t, t), stopgrad f~(x_r, r)).

Four parts make one: the pairs (t, r), the bridge from x_t to x_r, the distance, and the target network. The methods in
`fewstep.students.methods` are compositions of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.students.bridges import Bridge
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.pairs import Pairs
from fewstep.teachers.interfaces import (
    Batch,
    Evaluations,
    LossTerms,
    Objective,
    Progress,
    moved,
    per_image,
    randn,
)

Distance = Callable[[Tensor, Tensor], Tensor]


def pseudo_huber(c: float) -> Distance:
    """sqrt(||a - b||^2 + c^2) - c over the whole image, [B] (Song & Dhariwal 2023, eq. 7); c > 0."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        squared = (a - b).square().flatten(1).sum(dim=1)
        return (squared + c**2).sqrt() - c

    return distance


class ConsistencyObjective(Objective):
    """Train `network` so that neighbouring points of a trajectory map to the same image.

    The target is the network itself without gradient, with the same dropout mask as the gradient branch. Where
    r = sigma_min the target is x_r, since f(x, sigma_min) = x.
    """

    def __init__(
        self, network: ConsistencyModel, *, pairs: Pairs, bridge: Bridge, distance: Distance, cost: Evaluations
    ) -> None:
        super().__init__()
        self.network = network
        self.pairs, self.bridge, self.distance, self.cost = pairs, bridge, distance, cost

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0 = batch.images
        pairs = self.pairs(len(x_0), progress, generator)
        t, r, weight = (moved(value, x_0.device) for value in (pairs.t, pairs.r, pairs.weight))
        eps = randn(tuple(x_0.shape), generator, x_0.device)
        x_t, x_r = x_0 + per_image(t) * eps, self.bridge(x_0, eps, t, r, batch.condition)
        with torch.random.fork_rng(devices=[x_0.device] if x_0.is_cuda else []):
            estimate = self.network(x_t, t, batch.condition)
        with torch.no_grad():
            target = self.network(x_r, r, batch.condition)
        distance = self.distance(estimate, target)
        return LossTerms(loss=weight * distance, sigma=t, estimate=estimate)
