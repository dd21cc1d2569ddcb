"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A frozen copy of `network` that follows it with a half-life in images.

    While fewer than 20 half-lives have passed the half-life is a twentieth of the images seen (Karras 2022, code:
    ema_rampup_ratio 0.05), so that the first weights are forgotten.
    """

    def __init__(self, network: nn.Module, halflife_kimg: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.halflife_images = halflife_kimg * 1000

    @torch.no_grad()
    def update(self, network: nn.Module, images: int, batch_size: int) -> None:
        """Move towards `network` after a step of `batch_size` images, `images` seen in all."""
        halflife = min(self.halflife_images, images * 0.05)
        weight = 1 - 0.5 ** (batch_size / max(halflife, 1e-8))
        average: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(average, list(network.parameters()), weight)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
