"""Noise that depends on (seed, image index) alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

SEEDS, INDICES = 2**12, 2**20  # the CPU generator keeps 32 bits of its seed: larger keys would collide


class KeyedNoise:
    """Noise of the images start..stop-1 of one seed, whatever batch they are made in.

    Image i has the generator `torch.Generator("cpu").manual_seed(seed * 2**20 + i)`.
    ValueError: seed not in 0..4095, or an index not in 0..2**20 - 1.
    """

    def __init__(self, shape: tuple[int, int, int], seed: int, start: int, stop: int) -> None:
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed {seed} is outside 0..{SEEDS - 1}")
        if not 0 <= start < stop <= INDICES:
            raise ValueError(f"image indices {start}..{stop - 1} are empty or outside 0..{INDICES - 1}")
        self.shape = (1, *shape)
        self.generators: Sequence[torch.Generator] = [
            torch.Generator("cpu").manual_seed(seed * INDICES + i) for i in range(start, stop)
        ]

    def draw(self) -> Tensor:
        """[stop - start, C, H, W] float32: the next `torch.randn((1, C, H, W))` of each generator."""
        return torch.cat([torch.randn(self.shape, generator=generator) for generator in self.generators])
