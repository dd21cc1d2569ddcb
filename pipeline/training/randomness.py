"""Randomness keyed by what it is for, so that there is no generator state to save or lose.

A number depends on (seed, stream, step, slice) alone, where a slice is a fixed part of the global batch: the same
on one process or several, after any interruption. The order of the data is keyed by (seed, epoch). The names of
streams are here and nowhere else; changing one changes numbers, so none is made of a text that people read.
"""

import hashlib
from functools import lru_cache
from typing import NewType

import torch
from torch import Tensor

Stream = NewType("Stream", str)

ORDER, FLIP = Stream("order"), Stream("flip")
"""The order of the images, and which are mirrored."""
FILES, WINDOW = Stream("files"), Stream("window")
"""The order of a stream's files, and of the images of a window."""
TEACHER, TEACHER_WEIGHTS = Stream("teacher"), Stream("teacher-weights")
"""The training of a teacher, and its first weights."""
TRAJECTORIES = Stream("trajectories")
TRAINING_NUMBER = Stream("training")
"""The seeds of the second and later trainings of a student."""
REFIT, TRUSTED, CONVERSION = Stream("refit"), Stream("trusted"), Stream("conversion")
"""Steps of a student's conversion, see `conversion_stream`."""


def training_stream(student: str) -> Stream:
    """Return the stream of a student's training, by the student's name."""
    return Stream("student" if student == "student" else f"students.{student}")


def regression_stream(student: str) -> Stream:
    """Return the stream of a student's regression onto the teacher."""
    return Stream(f"{training_stream(student)}-regression")


def conversion_stream(step: Stream, student: str) -> Stream:
    """Return the stream of a step of a student's conversion."""
    return Stream(step if student == "student" else f"{step}, {student}")


def dropout_stream(training: Stream) -> Stream:
    """Return the stream of the dropout of a training."""
    return Stream(f"{training}-dropout")


def key(seed: int, stream: Stream, *counters: int) -> int:
    """A 32-bit key: the first bytes of a hash (the CPU generator keeps 32 bits of its seed)."""
    text = ":".join([str(seed), stream, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def keyed_generator(seed: int, stream: Stream, *counters: int) -> torch.Generator:
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
    return torch.randperm(num_images, generator=keyed_generator(seed, ORDER, epoch))
