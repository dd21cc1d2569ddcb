"""How good a student's weight averages are while it is distilled: KID of one-step images, by torchmetrics.

KID and no Frechet distance: the images of choices are fewer than an extractor's features, see
`fewstep.pipeline.stages.search`, whose noise and real images are used here too.
"""

import time
import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from fewstep.eval import seeds
from fewstep.eval.features.extractors import Extractor, load_extractor
from fewstep.eval.images import Generated
from fewstep.eval.quality.metrics import KID_SUBSETS, SEED
from fewstep.pipeline.sampling.models import student_sampler
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.stages.search import SUBSET
from fewstep.progress import say

BATCH = 100  # images generated, and in the extractor, at once


class Features(nn.Module):
    """An extractor as the module that torchmetrics takes: uint8 [N, C, H, W] -> [N, D], float64 as in our own KID."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        """See `Extractor`."""
        return self.extractor(images).double()


class Quality:
    """The probe of a distillation: KID of `count` images of each average against real ones, uint8 [M, C, H, W].

    Noise and subsets are the same at every call, so values differ by the weights alone. `values` are the last
    call's, by half-life; `images` and `seconds` count what all calls of this process made and took.
    """

    def __init__(self, run: RunContext, count: int, real: Tensor) -> None:
        self.run, self.count, self.real = run, count, real
        self.values: dict[str, float] = {}
        self.images, self.seconds = 0, 0.0

    def __call__(self, averages: Mapping[str, nn.Module]) -> dict[str, float]:
        """{"kid_5": KID of the average of half-life 5 kimg}; the first call extracts the real features."""
        clock = time.monotonic()
        self.values = {name: self.kid(average) for name, average in averages.items()}
        self.images += self.count * len(averages)
        self.seconds += time.monotonic() - clock
        return {f"kid_{name}": value for name, value in self.values.items()}

    def best(self, averages: Mapping[str, nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
        """The average with the lowest KID at the end of training, and what the manifest keeps."""
        if not self.values:  # a run that was stopped between its last checkpoint and here
            self(averages)
        chosen = min(self.values, key=lambda name: self.values[name])
        shown = ", ".join(f"{value:.4g} at {name} kimg" for name, value in self.values.items())
        say(f"  KID by half-life of the average: {shown}; that of {chosen} kimg is saved")
        say(f"  measuring them made {self.images:,} images in {self.seconds:.0f} s")
        cost = {"images": self.images, "seconds": self.seconds}
        return averages[chosen], {"metric": "KID", "halflives": self.values, "chosen": chosen, "cost": cost}

    def kid(self, student: nn.Module) -> float:
        """Leaves the student's mode and torch's generators as they are."""
        images = Generated(student_sampler(student, 1), seeds.SEARCH, self.count, BATCH)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):  # an extractor's first weights are drawn too, and replaced
            self.metric.reset()
            for start in range(0, self.count, BATCH):
                self.metric.update(images.images(start, start + BATCH), real=False)
            torch.default_generator.manual_seed(SEED)  # from which torchmetrics draws its subsets
            return float(self.metric.compute()[0])

    @cached_property
    def metric(self) -> KernelInceptionDistance:
        """torchmetrics' KID with the features of the real images; alone in its process where others train too."""
        config = self.run.config.eval
        features = Features(load_extractor(config.extractor, config.weights, self.run.device))
        size = min(SUBSET, self.count, len(self.real))
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # that it keeps all features
            metric = KernelInceptionDistance(
                features, KID_SUBSETS, size, reset_real_features=False, sync_on_compute=False
            )
        for part in self.real.split(BATCH):
            metric.update(part, real=True)
        return metric
