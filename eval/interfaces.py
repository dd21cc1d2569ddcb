"""What evaluation sees: noise keyed per image, anything that makes images, anything that holds them."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Noise(Protocol):
    """The randomness of a batch of images, one generator for each image.

    `generators` is for samplers that take generators (a stock diffusers pipeline); all others call `draw`.
    """

    generators: Sequence[torch.Generator]

    def draw(self) -> Tensor:
        """Standard normal noise [B, C, H, W], float32 on the CPU.

        Call k returns the k-th `torch.randn((1, C, H, W))` of each generator.
        """
        ...


class Sampler(Protocol):
    """Anything that makes images: a teacher under a solver, a student at some number of steps, a pipeline.

    `name` is unique in a table ("teacher@ddim:50", "student@1"), `label` is for people, `kind` is "teacher"
    or "student", `nfe` counts network evaluations for one image, rows of the network's batch, `networks` are those
    that torch runs, first the one that is evaluated, `shape` is (C, H, W), `num_classes` is None for an unconditional
    model, `schedule` holds the timesteps or sigmas that are used. One that runs on another device than the
    benchmark's has it as `device`.
    """

    name: str
    label: str
    kind: str
    nfe: int
    network_parameters: int
    shape: tuple[int, int, int]
    num_classes: int | None

    @property
    def networks(self) -> Sequence[nn.Module]: ...

    @property
    def schedule(self) -> Sequence[float]: ...

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W], float32 in [-1, 1], on the sampler's device; labels are int64 [B]."""
        ...


class ImageSource(Protocol):
    """Images by index: generated, or held in memory."""

    def images(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1 as uint8 [N, C, H, W] on the CPU."""
        ...

    def __len__(self) -> int: ...


class IndexedImages(ImageSource, Protocol):
    """Images that can be had in any order, from memory or from the disk."""

    def take(self, indices: Tensor) -> Tensor:
        """The images of `indices`, int64 [B], in that order, as uint8 [B, C, H, W] on the CPU."""
        ...


class Shares(Protocol):
    """The processes that make images together, seen from one of them; the first one leads.

    `number` of them, `index` is this one's.
    """

    @property
    def number(self) -> int: ...

    @property
    def index(self) -> int: ...

    def call(self, *task: object) -> None:
        """In the leading one: have all others make their shares of a task, which plain values name."""
        ...

    def gather(self, mine: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """What each of them made, in their order; all must come here."""
        ...


class Alone:
    """`Shares` of a single process: the whole."""

    number, index = 1, 0

    def call(self, *task: object) -> None:
        """There is nobody else."""

    def gather(self, mine: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """What was made."""
        return [mine]


ALONE = Alone()
