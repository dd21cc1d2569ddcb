"""Pairs of noise levels (t, r), t > r >= sigma_min, with the weight of each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

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


_karras = lru_cache(maxsize=4)(karras_sigmas)  # steps that follow each other have one grid
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
        return neighbours(_karras(self.num, self.sigma_min, self.sigma_max, self.rho), num, generator)


@dataclass(frozen=True, kw_only=True)
class CTPairs:
    """Neighbours on a Karras grid that grows from s0 to s1 intervals, weight 1 (Song 2023, algorithm 3, appendix C)."""

    sigma_min: float
    sigma_max: float
    s0: int
    s1: int
    mu0: float
    """Decay of the target at s0 intervals."""

    def points(self, progress: Progress) -> int:
        """N(k) = ceil(sqrt(k/K*((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1."""
        grown = progress.fraction * ((self.s1 + 1) ** 2 - self.s0**2)
        return math.ceil((grown + self.s0**2) ** 0.5 - 1) + 1

    def decay(self, progress: Progress) -> float:
        """mu(k) = exp(s0*ln(mu0)/N(k)), of the target network."""
        return math.exp(self.s0 * math.log(self.mu0) / self.points(progress))

    def __call__(self, num: int, progress: Progress, generator: torch.Generator) -> SigmaPairs:
        """`num` pairs, uniform over the grid's intervals."""
        return neighbours(_karras(self.points(progress), self.sigma_min, self.sigma_max), num, generator)


@dataclass(frozen=True, kw_only=True)
class ICTPairs:
    """Neighbours on a Karras grid whose intervals double from s0 to s1, weight 1/(t - r) (Song & Dhariwal 2023).

    An interval is drawn as often as ln sigma ~ N(mean, std^2) falls into it (section 3.5).
    """

    sigma_min: float
    sigma_max: float
    s0: int
    s1: int
    mean: float = -1.1
    std: float = 2.0

    def points(self, progress: Progress) -> int:
        """N(k) = min(s0*2^floor(k/K'), s1) + 1, K' = floor(K/(log2(floor(s1/s0)) + 1)) (eq. 8), K' at least 1."""
        length = max(1, int(progress.total_steps / (math.log2(self.s1 // self.s0) + 1)))
        return min(self.s0 * 2 ** (progress.step // length), self.s1) + 1

    @lru_cache(maxsize=4)  # noqa: B019 - of a frozen value
    def _grid(self, points: int) -> tuple[Tensor, Tensor]:
        """The grid of so many points, and where each interval ends in the distribution."""
        grid = karras_sigmas(points, self.sigma_min, self.sigma_max)
        return grid, self.probabilities(grid).cumsum(0)

    def probabilities(self, grid: Tensor) -> Tensor:
        """p of the intervals of a monotonic grid [N], float64 [N - 1] (eq. 10)."""
        edges = torch.erf((grid.double().log() - self.mean) / (2**0.5 * self.std))
        p = edges.diff().abs()
        return p / p.sum()

    def __call__(self, num: int, progress: Progress, generator: torch.Generator) -> SigmaPairs:
        """`num` pairs, stratified in the quantiles of p."""
        grid, ends = self._grid(self.points(progress))
        index = torch.searchsorted(ends, stratified(num, generator)).clamp(max=len(ends) - 1)
        t, r = grid[index], grid[index + 1]
        return SigmaPairs(t=t.float(), r=r.float(), weight=(1 / (t - r)).float())


@dataclass(frozen=True, kw_only=True)
class TablePairs:
    """Entries of a teacher's table `skip` apart, t = skip*i - 1 as DDIM counts them, weight 1 (Luo 2023, section 4.3).

    table: ascending [T]. Its entries within the student's range, with the range's two ends, are the grid.
    """

    sigma_min: float
    sigma_max: float
    table: Tensor
    skip: int

    @property
    def grid(self) -> Tensor:
        """Descending noise levels, float64; an entry within a thousandth of an end is left out for it."""
        inner = self.table.double()[self.skip - 1 :: self.skip].flip(0)
        inner = inner[(inner > self.sigma_min * 1.001) & (inner < self.sigma_max / 1.001)]
        return torch.cat([inner.new_tensor([self.sigma_max]), inner, inner.new_tensor([self.sigma_min])])

    def __call__(self, num: int, progress: Progress, generator: torch.Generator) -> SigmaPairs:
        """`num` pairs; `progress` has no part in it."""
        return neighbours(self.grid, num, generator)


def neighbours(grid: Tensor, num: int, generator: torch.Generator) -> SigmaPairs:
    """`num` pairs of neighbours on a descending grid [N], uniform over its intervals, weight 1."""
    grid, intervals = grid.float(), len(grid) - 1
    index = (stratified(num, generator) * intervals).long().clamp(max=intervals - 1)
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
