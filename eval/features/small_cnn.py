"""small-cnn: a small classifier whose inner features judge any small images, without a download.

Its weights ship with the package; `python -m fewstep.eval.features.make_small_cnn` makes them again. It learned from
CIFAR-10, Fashion-MNIST and MNIST; docs/small-cnn.md says what it was checked against and where it is weak.
"""

from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.eval.features.extractors import OpenNetwork
from fewstep.eval.features.weights_file import read_shipped

WEIGHTS = Path(__file__).parent / "weights" / "small-cnn.safetensors"
SIDE, FEATURES = 32, 64
CHANNELS, STRIDES, KERNELS = (24, 48, 96, 96, 128), (2, 2, 1, 2, 1), (5, 3, 3, 3, 3)
POOLED = (0, 2, 4)  # convolutions whose mean over the image goes into the features: fine, middle and coarse detail


class SmallCNN(nn.Module):
    """Five convolutions and a linear layer, 260,000 parameters.

    The features are the 64 inputs of the classifying layers. Over the training images each has mean 0 and standard
    deviation 1. `normalise` stands for batch norms in training; the shipped weights have these folded in.
    """

    def __init__(self, *, normalise: bool = False) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after, stride, size in zip((3, *CHANNELS), CHANNELS, STRIDES, KERNELS, strict=False):
            self.convs.append(nn.Conv2d(before, after, size, stride, size // 2))
            self.norms.append(nn.BatchNorm2d(after) if normalise else nn.Identity())
        self.embed = nn.Linear(sum(CHANNELS[index] for index in POOLED), FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES).requires_grad_(False) if normalise else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Images of `prepared` -> features [N, 64]."""
        x, pooled = images, []
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if index in POOLED:
                pooled.append(x.mean((2, 3)))
        return self.norm(self.embed(torch.cat(pooled, 1)))


def prepared(images: Tensor) -> Tensor:
    """Return uint8 [N, 3, H, W] as float32 [N, 3, 32, 32] in [-1, 1].

    Each pixel of images of fewer than 32 is repeated, 8x8 becomes 32x32 and 28x28 56x56, which keeps their edges and
    noise sharp. Images that are larger then are resized bilinearly with antialiasing, whatever their proportions.
    """
    repeats = [ceil(SIDE / side) for side in images.shape[-2:]]
    enlarged = F.interpolate(images.float() / 127.5 - 1, scale_factor=repeats, mode="nearest")
    return F.interpolate(enlarged, (SIDE, SIDE), mode="bilinear", antialias=True)


def read_weights(_: Path | None = None) -> dict[str, Tensor]:
    """Return the shipped tensors, float16; UserError if they are damaged."""
    return read_shipped(WEIGHTS)


def open_network(tensors: dict[str, Tensor], device: torch.device) -> OpenNetwork:
    """Return its features; it has no logits of an Inception Score."""
    network = SmallCNN()
    network.load_state_dict(tensors)
    network.requires_grad_(False).eval().to(device)
    return OpenNetwork(features=lambda images: network(prepared(images)), used=tensors)
