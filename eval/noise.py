"""Noise that depends on (seed, image index) alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.eval.seeds import BLOCK_IMAGES, BLOCKS


class KeyedNoise:
    """Noise of the images start..stop-1 of one seed, whatever batch they are made in.

    Image i has the generator `torch.Generator("cpu").manual_seed(seed * 2**20 + i)`.
    ValueError: seed not in 0..BLOCKS - 1, or an index not in 0..BLOCK_IMAGES - 1.
    """

    def __init__(self, shape: tuple[int, int, int], seed: int, start: int, stop: int) -> None:
        if not 0 <= seed < BLOCKS:
            raise ValueError(f"seed {seed} is outside 0..{BLOCKS - 1}")
        if not 0 <= start < stop <= BLOCK_IMAGES:
            raise ValueError(f"image indices {start}..{stop - 1} are empty or outside 0..{BLOCK_IMAGES - 1}")
        self.shape = (1, *shape)
        self.generators: Sequence[torch.Generator] = [
            torch.Generator("cpu").manual_seed(seed * BLOCK_IMAGES + i) for i in range(start, stop)
        ]

    def draw(self) -> Tensor:
        """[stop - start, C, H, W] float32: the next `torch.randn((1, C, H, W))` of each generator."""
        return torch.cat([torch.randn(self.shape, generator=generator) for generator in self.generators])
