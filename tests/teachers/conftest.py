"""What the teachers' tests share: a tiny network and the exact denoiser of Gaussian data."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from fewstep.teachers.network import build_unet


@pytest.fixture(scope="session")
def tiny_unet() -> Callable[..., UNet2DModel]:
    """tiny_unet(seed=0, dropout=0.0): a UNet for 1x8x8 images, 0.07 M parameters."""

    def build(seed: int = 0, dropout: float = 0.0) -> UNet2DModel:
        return build_unet(
            (1, 8, 8),
            channels=(16, 16),
            layers_per_block=1,
            attention=(False, False),
            norm_groups=8,
            dropout=dropout,
            seed=seed,
        )

    return build


class GaussianDenoiser:
    """D(x; s) = (v*x + s^2*m) / (v + s^2), exact for pixels that are independently N(m, v)."""

    shape = (1, 4, 4)
    sigma_min, sigma_max = 0.002, 80.0
    sigmas: Tensor | None = None
    num_classes: int | None = None

    def __init__(self, mean: float, variance: float) -> None:
        self.mean, self.variance = mean, variance

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        s = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        return (self.variance * x + s**2 * self.mean) / (self.variance + s**2)


@pytest.fixture(scope="session")
def gaussian() -> type[GaussianDenoiser]:
    """gaussian(mean, variance): the exact denoiser of Gaussian data."""
    return GaussianDenoiser


@pytest.fixture(scope="session")
def draws() -> Callable[[int], Callable[[], Tensor]]:
    """draws(num): a function giving [num,1,8,8], image i from a generator of seed i, as stock pipelines draw."""

    def make(num: int) -> Callable[[], Tensor]:
        generators = [torch.Generator("cpu").manual_seed(index) for index in range(num)]
        return lambda: torch.cat([torch.randn((1, 1, 8, 8), generator=generator) for generator in generators])

    return make
