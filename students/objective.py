"""Discrete consistency objectives: loss = weight(t, r) * distance(f(x_t, t), stopgrad f~(x_r, r)).

Four parts make one: the pairs (t, r), the bridge from x_t to x_r, the distance, and the target network. The methods in
`fewstep.students.methods` are compositions of them.
"""

import copy
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from fewstep.students.bridges import Bridge
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.joined import has_dropout
from fewstep.students.pairs import Pairs, SigmaPairs
from fewstep.teachers.interfaces import (
    Batch,
    Evaluations,
    Following,
    LossTerms,
    Objective,
    Progress,
    moved,
    per_image,
    randn,
)

Distance = Callable[[Tensor, Tensor], Tensor]
Decay = Callable[[Progress], float]
"""The share of itself that a target network keeps in a step."""


def pseudo_huber(c: float) -> Distance:
    """sqrt(||a - b||^2 + c^2) - c over the whole image, [B] (Song & Dhariwal 2023, eq. 7); c > 0."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (squared(a, b) + c**2).sqrt() - c

    return distance


def squared(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||^2 over the whole image, [B] (Song 2023)."""
    return (a - b).square().flatten(1).sum(dim=1)


class ConsistencyObjective(Objective):
    """Train `network` so that neighbouring points of a trajectory map to the same image.

    The target is the network itself without gradient, or with a `decay` its running average `target`, which keeps that
    share of itself in each step; always with the same dropout mask as the gradient branch. Where r = sigma_min the
    target is x_r, since f(x, sigma_min) = x.
    """

    def __init__(
        self,
        network: ConsistencyModel,
        *,
        pairs: Pairs,
        bridge: Bridge,
        distance: Distance,
        cost: Evaluations,
        decay: Decay | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.pairs, self.bridge, self.distance, self.cost = pairs, bridge, distance, cost
        self.decay = decay
        self._has_dropout = has_dropout(network)
        self.target = frozen_copy(network) if decay else None

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0 = batch.images
        pairs = self.pairs(len(x_0), progress, generator)
        t, r, weight = (moved(value, x_0.device) for value in (pairs.t, pairs.r, pairs.weight))
        eps = randn(tuple(x_0.shape), generator, x_0.device)
        x_t, x_r = x_0 + per_image(t) * eps, self.bridge(x_0, eps, t, r, batch.condition)
        estimates, targets = [], []
        if not self._has_dropout:  # no mask that the two points of a part must share
            estimates.append(self.network(x_t, t, batch.condition))
        for part, network in self.targets(pairs, progress):
            condition = batch.condition.of(part)
            if self._has_dropout:
                with torch.random.fork_rng(devices=[x_0.device] if x_0.is_cuda else []):
                    estimates.append(self.network(x_t[part], t[part], condition))
            with torch.no_grad():
                targets.append(network(x_r[part], r[part], condition))
        estimate = torch.cat(estimates)
        distance = self.distance(estimate, torch.cat(targets))
        return LossTerms(loss=weight * distance, sigma=t, estimate=estimate)

    def targets(self, pairs: SigmaPairs, progress: Progress) -> list[tuple[slice, nn.Module]]:
        """The parts of a batch, in order, each with its target network."""
        return [(slice(None), self.network if self.target is None else self.target)]

    def update(self, progress: Progress) -> None:
        """Move the target network after a step."""
        if self.decay is not None:
            self._target_following.move(1 - self.decay(progress))

    @cached_property
    def _target_following(self) -> Following:
        assert self.target is not None
        return Following(self.target, self.network)


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy without gradients, for a target that is a submodule: checkpoints keep it."""
    return copy.deepcopy(network).requires_grad_(False)


def constant_decay(target_ema: float) -> Decay | None:
    """The same decay in every step; None, no average, for 0."""
    return (lambda progress: target_ema) if target_ema else None
