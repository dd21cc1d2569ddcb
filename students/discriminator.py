"""Small networks that tell real images from made ones, both noised: by their pixels, or by a denoiser's features."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from fewstep.errors import UserError
from fewstep.teachers.interfaces import per_image
from fewstep.teachers.preconditioned import Preconditioned


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


class Encoder(nn.Module):
    """What the way down of a frozen student's UNet sees of noised images: a denoiser's features know what is real.

    x [B,C,H,W] and sigma [B] to a tuple of [B,C',H',W'], one of each resolution before it is halved, and the innermost.
    """

    def __init__(self, student: Preconditioned) -> None:
        super().__init__()
        self.student = student.clone().requires_grad_(False)
        assert isinstance(self.student.network, UNet2DModel)
        if any(hasattr(block, "skip_conv") for block in self.student.network.down_blocks):
            remedy = "cannot be true for a network with skip blocks (NCSN++): judge by pixels"
            raise UserError("student.adversarial.features", True, remedy)
        channels = self.student.network.config["block_out_channels"]
        self.channels = (*channels, channels[-1])

    def train(self, mode: bool = True) -> Self:
        """Nothing in it is trained: it has no dropout."""
        return super().train(False)

    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """See the class; as `UNet2DModel.forward` goes down."""
        unet, (_, _, c_in, c_noise) = self.student.network, self.student.scaling(sigma)
        assert isinstance(unet, UNet2DModel)
        time = unet.time_embedding(unet.time_proj(c_noise).to(x.dtype))
        hidden, seen = unet.conv_in(per_image(c_in) * x), list[Tensor]()
        for block in unet.down_blocks:
            hidden, states = block(hidden_states=hidden, temb=time)
            seen.append(states[unet.config["layers_per_block"] - 1])
        assert unet.mid_block is not None
        return (*seen, unet.mid_block(hidden, time))


class Heads(nn.Module):
    """Logits [B] of an `Encoder`'s features: a few convolutions for each, their mean over places and features."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, each),
                nn.Conv2d(each, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 4, stride=2, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for each in channels
        )

    def forward(self, *seen: Tensor) -> Tensor:
        """Of the features and, last, their noise levels, which the features know."""
        *features, _ = seen
        logits = [head(each).mean((1, 2, 3)) for head, each in zip(self.heads, features, strict=True)]
        return torch.stack(logits).mean(0)
