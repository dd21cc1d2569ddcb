"""Noise levels: the sigma table of a discrete VP schedule, its inverse t(sigma), and the Karras grid."""

import torch
from torch import Tensor


def vp_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t), float64 [T] ascending (Karras 2022, appendix C.3.1)."""
    alphas_cumprod = alphas_cumprod.double()
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


ZERO_SNR_SIGMA = 2.0**20
"""Stands for the infinite last level of zero terminal SNR (Lin 2023): in float32 x/sqrt(1 + sigma^2) is eps there."""


def vp_table(alphas_cumprod: Tensor) -> Tensor:
    """`vp_sigmas` with an infinite last entry as 2^20, finite float64 [T] ascending."""
    sigmas = vp_sigmas(alphas_cumprod)
    return torch.where(sigmas.isinf(), ZERO_SNR_SIGMA, sigmas)


def timestep_of_sigma(sigma: Tensor, sigmas: Tensor) -> Tensor:
    """The continuous timestep t(sigma) of a table, [B] in sigma's dtype: linear in ln sigma, clamped to [0, T-1].

    `sigmas` is an ascending table [T] of finite numbers, on the device of `sigma`.
    """
    log_table = sigmas.double().log()
    log_sigma = sigma.double().log().clamp(log_table[0], log_table[-1])
    upper = torch.searchsorted(log_table, log_sigma).clamp(1, len(log_table) - 1)
    low, high = log_table[upper - 1], log_table[upper]
    return (upper - 1 + (log_sigma - low) / (high - low)).to(sigma.dtype)


def karras_sigmas(num: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """`num` >= 2 noise levels from sigma_max down to sigma_min, float64 [num] (Karras 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, num, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho
