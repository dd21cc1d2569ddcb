"""Pairs of noise levels (t, r), t > r >= sigma_min, with the weight of each."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.teachers.interfaces import Progress, stratified
from fewstep.teachers.schedule import karras_sigmas


@dataclass(frozen=True, kw_only=True)
class SigmaPairs:
    """Noise levels `t` and `r` [B] and the weight of each pair [B], float32 on the CPU."""

    t: Tensor
    r: Tensor
    weight: Tensor


Pairs = Callable[[int, Progress, torch.Generator], SigmaPairs]


@dataclass(frozen=True, kw_only=True)
class ECTPairs:
    """ln t normal, truncated to the student's range; r comes closer to t at each stage (Geng 2024, eqs. 15-16).

    r = max(sigma_min, t*(1 - q^-(stage+1) * (1 + 8*sigmoid(-t)))), weight 1/(t - r); stage counts the doublings
    so far, `doublings` of them equally spaced over training.
    """

    sigma_min: float
    sigma_max: float
    doublings: int
    q: float = 2.0
    mean: float = -1.1
    std: float = 2.0

    def stage(self, progress: Progress) -> int:
        """Doublings so far, 0 up to `doublings`."""
        return min(int(progress.fraction * (self.doublings + 1)), self.doublings)

    def lower(self, t: Tensor, stage: int) -> Tensor:
        """r(t) at a stage, [B]."""
        gap = self.q ** -(stage + 1) * (1 + 8 * torch.sigmoid(-t))
        return (t * (1 - gap)).clamp(min=self.sigma_min)

    def __call__(self, num: int, progress: Progress, generator: torch.Generator) -> SigmaPairs:
        """`num` pairs, stratified in the quantiles of ln t."""
        t = log_normal_sigmas(num, self.sigma_min, self.sigma_max, self.mean, self.std, generator)
        r = self.lower(t, self.stage(progress))
        return SigmaPairs(t=t, r=r, weight=1 / (t - r))


@dataclass(frozen=True, kw_only=True)
class KarrasPairs:
    """Neighbours on a Karras grid, uniform over its points, weight 1 (Song 2023, algorithm 2)."""

    sigma_min: float
    sigma_max: float
    num: int = 18
    rho: float = 7.0

    def __call__(self, num: int, progress: Progress, generator: torch.Generator) -> SigmaPairs:
        """`num` pairs; `progress` has no part in it."""
        grid = karras_sigmas(self.num, self.sigma_min, self.sigma_max, self.rho).float()
        index = (stratified(num, generator) * (self.num - 1)).long().clamp(max=self.num - 2)
        return SigmaPairs(t=grid[index], r=grid[index + 1], weight=torch.ones(num))


def log_normal_sigmas(
    num: int, sigma_min: float, sigma_max: float, mean: float, std: float, generator: torch.Generator
) -> Tensor:
    """`num` noise levels, ln sigma ~ N(mean, std^2) truncated to the range, stratified in quantiles, float32."""
    low, high = (_normal_cdf((math.log(sigma) - mean) / std) for sigma in (sigma_min, sigma_max))
    quantile = low + (high - low) * stratified(num, generator)
    sigma = (mean + std * torch.special.ndtri(quantile)).exp().float()
    return sigma.clamp(sigma_min * (1 + 1e-3), sigma_max)


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
