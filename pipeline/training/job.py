"""What a training is: the images of its batches, its length and learning rate, and the places of its files."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from fewstep.pipeline.config.training import TrainConfig
from fewstep.pipeline.data.feed import Batches, Feed
from fewstep.pipeline.data.training import TrainingData
from fewstep.pipeline.training.randomness import FLIP, Stream, keyed_generator
from fewstep.teachers.interfaces import Batch, Condition, moved


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train on, how, and where its files go."""

    title: str
    """The dotted key of its section, for messages."""
    stream: Stream
    """What its randomness is keyed by, beside the seed."""
    data: TrainingData
    labelled: bool
    """Whether the networks take labels."""
    workers: int
    """Processes that read and decode batches ahead of this one."""
    horizontal_flip: bool
    config: TrainConfig
    slices: int
    """Parts of a batch, each with randomness of its own; a multiple of the number of processes."""
    parts: range
    """Those of this process."""
    seed: int
    config_hash: str
    checkpoints: Path
    log: Path
    tensorboard: Path

    @property
    def total_steps(self) -> int:
        """Optimizer steps: the length in kimg, rounded up to whole batches."""
        return math.ceil(self.config.kimg * 1000 / self.config.batch_size)

    @cached_property
    def feed(self) -> Feed:
        """Which images are in which batch."""
        return self.data.feed(self.seed, self.config.batch_size, labelled=self.labelled)

    @cached_property
    def batches(self) -> Batches:
        """The images of this process, on their way."""
        size = self.config.batch_size // self.slices
        part = slice(self.parts.start * size, self.parts.stop * size)
        return Batches(self.feed, part, self.total_steps, self.workers)

    def batch(self, step: int, part: int, device: torch.device) -> Batch:
        """Slice `part` of the global batch of `step`, in [-1, 1]; mirrored by chance where configured."""
        pixels, labels = self.batches.get(step)
        mine = self.parts.index(part)
        images = pixels.chunk(len(self.parts))[mine]
        images = moved(images, device).float() / 127.5 - 1
        if self.horizontal_flip:
            coin = torch.rand(len(images), generator=keyed_generator(self.seed, FLIP, step, part))
            images = torch.where(moved(coin < 0.5, device).reshape(-1, 1, 1, 1), images.flip(-1), images)
        labels = None if labels is None else moved(labels.chunk(len(self.parts))[mine], device)
        return Batch(images=images, condition=Condition(labels=labels))

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant, or a cosine or straight line down to zero at the end.

        The warm-up is held to a tenth of the training, so that a short one is the long one in small.
        """
        config = self.config
        warmup_kimg = min(config.warmup_kimg, config.kimg / 10)
        warmup = min(1.0, (step + 1) * config.batch_size / max(warmup_kimg * 1000, 1e-9))
        fraction = step / self.total_steps
        course = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * fraction)), "linear": 1 - fraction}
        return config.learning_rate * warmup * course[config.decay]
