"""Randomness keyed by what it is for, so that there is no generator state to save or lose.

A number depends on (seed, stream, step, slice) alone, where a slice is a fixed part of the global batch: the same
on one process or several, after any interruption. The order of the data is keyed by (seed, epoch).
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def key(seed: int, stream: str, *counters: int) -> int:
    """A 32-bit key: the first bytes of a hash (the CPU generator keeps 32 bits of its seed)."""
    text = ":".join([str(seed), stream, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def keyed_generator(seed: int, stream: str, *counters: int) -> torch.Generator:
    """A CPU generator of its own for this key."""
    return torch.Generator("cpu").manual_seed(key(seed, stream, *counters))


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators that layers draw from on a device.

    `torch.manual_seed` seeds those of devices that are not there too, and writes down for each where it was called
    from, which takes a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.manual_seed(seed)


def batch_indices(seed: int, num_images: int, batch_size: int, step: int) -> Tensor:
    """Indices of the global batch of `step`, int64 [batch_size].

    The images are passed in a new order every epoch, without a break between epochs; each epoch sees every image
    once.
    """
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_images
    indices = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        chosen = epochs == epoch
        indices[chosen] = _order(seed, num_images, epoch)[positions[chosen] % num_images]
    return indices


@lru_cache(maxsize=2)  # of the two epochs that a batch may touch: to be read only
def _order(seed: int, num_images: int, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=keyed_generator(seed, "order", epoch))
