"""A small network that tells real images from made ones, both noised."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu


class Discriminator(nn.Module):
    """Logits [B] of images [B,C,H,W] noised to sigma [B]: positive for real ones.

    Convolutions that halve the side and double the channels until the side is 4 or less, each with a bias that depends
    on the noise level. There is no normalisation: R1's second derivative goes through every layer.
    """

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        halvings = max(1, math.ceil(math.log2(size / 4)))
        widths = [min(width * 2**index, 8 * width) for index in range(halvings + 1)]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(narrow, wide, 4, stride=2, padding=1) for narrow, wide in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.levels = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, sum(widths[1:])))
        self.widths = widths[1:]
        side = size // 2**halvings  # a convolution rounds the half of an odd side down
        self.logit = nn.Linear(widths[-1] * side**2, 1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See the class."""
        scale = (1 + sigma**2).rsqrt()
        level = torch.stack([scale, sigma.log() / 4], dim=1)
        biases = self.levels(level).split(self.widths, dim=1)
        hidden = leaky_relu(self.first(x * scale.reshape(-1, 1, 1, 1)), 0.2)
        for down, bias in zip(self.downs, biases, strict=True):
            hidden = leaky_relu(down(hidden) + bias[:, :, None, None], 0.2)
        return self.logit(leaky_relu(self.last(hidden), 0.2).flatten(1)).squeeze(1)
