"""Truncated consistency training (Lee 2024): a second stage that leaves the low noise levels to a frozen network."""

import math
from dataclasses import dataclass
from functools import cached_property

import scipy.stats
import torch
from torch import Tensor, nn

from fewstep.students.bridges import data_bridge
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.objective import ConsistencyObjective, frozen_copy, pseudo_huber
from fewstep.students.pairs import ECTPairs, SigmaPairs
from fewstep.teachers.interfaces import Evaluations, Following, Progress, stratified

BOUNDARY_SHARE, BOUNDARY_WEIGHT = 0.25, 0.1


@dataclass(frozen=True, kw_only=True)
class TruncatedPairs:
    """ECT's pairs, and from the share `stage_one` of training on pairs with t >= boundary, ECT's closest.

    Of these a quarter has t at the boundary and the others ln(t/boundary) from Student's t (location 0, scale 0.2,
    0.01 degrees of freedom) truncated to the range. Weights are 1/(t - r), so divided that the mean over a batch is the
    others' mean + 0.1 * that at the boundary. All of `stage_one` holds ect's doublings.
    """

    ect: ECTPairs
    boundary: float
    stage_one: float
    scale: float = 0.2
    freedom: float = 0.01

    def levels(self, quantile: Tensor) -> Tensor:
        """t at quantiles [B] of the truncated distribution, float64."""
        top = math.log(self.ect.sigma_max / self.boundary)
        low, high = scipy.stats.t.cdf([0, top], self.freedom, scale=self.scale)
        x = scipy.stats.t.ppf(low + (high - low) * quantile.numpy(), self.freedom, scale=self.scale)
        return self.boundary * torch.from_numpy(x).exp()

    def __call__(self, num: int, progress: Progress, generator: torch.Generator) -> SigmaPairs:
        """`num` pairs; in the second stage r ascends."""
        length = max(1, round(self.stage_one * progress.total_steps))
        within = Progress(step=progress.step, total_steps=length, images=progress.images)
        if progress.fraction < self.stage_one:
            return self.ect(num, within, generator)
        at = int(num * BOUNDARY_SHARE)
        others = self.levels(stratified(num - at, generator)).sort().values
        t = torch.cat([torch.full((at,), self.boundary), others.float().clamp(self.boundary, self.ect.sigma_max)])
        r = self.ect.lower(t, self.ect.stage(within))
        share = torch.full((num,), num / (num - at))
        share[:at] = BOUNDARY_WEIGHT * num / max(at, 1)
        return SigmaPairs(t=t, r=r, weight=share / (t - r))


class TruncatedObjective(ConsistencyObjective):
    """Consistency training on all noise levels, then above the boundary alone, against `frozen` below it.

    `frozen` follows the network in the first stage, as its average over about the last twentieth of the steps, and
    stays in the second. Its parameters are part of a checkpoint.
    """

    pairs: TruncatedPairs

    def __init__(self, network: ConsistencyModel, *, pairs: TruncatedPairs) -> None:
        cost = Evaluations(student=1, target=1)
        super().__init__(network, pairs=pairs, bridge=data_bridge, distance=pseudo_huber(1e-8), cost=cost)
        self.frozen = frozen_copy(network)

    def targets(self, pairs: SigmaPairs, progress: Progress) -> list[tuple[slice, nn.Module]]:
        """In the second stage `frozen` for the pairs with r below the boundary, which come first."""
        if progress.fraction < self.pairs.stage_one:
            return super().targets(pairs, progress)
        below = int((pairs.r < self.pairs.boundary).sum())
        parts = [(slice(0, below), self.frozen), (slice(below, None), self.network)]
        return [(part, network) for part, network in parts if len(pairs.r[part])]

    def update(self, progress: Progress) -> None:
        """Move `frozen` in the first stage."""
        if progress.fraction < self.pairs.stage_one:
            self._frozen_following.move(1 - 0.5 ** (20 / (progress.step + 1)))

    @cached_property
    def _frozen_following(self) -> Following:
        return Following(self.frozen, self.network)
