"""The quality of one sampler: its metrics over seed blocks."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from fewstep.eval.features.extractors import Extractor
from fewstep.eval.features.overlap import each_batch
from fewstep.eval.interfaces import ALONE, ImageSource, Shares
from fewstep.eval.quality.copies import TrainingFeatures
from fewstep.eval.quality.extrapolation import Extrapolation
from fewstep.eval.quality.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    statistics,
)
from fewstep.eval.quality.protocol import Protocol
from fewstep.eval.quality.references import Reference

SCRATCH = ".scratch-"


@contextmanager
def generated(
    source: ImageSource, extractor: Extractor, batch_size: int, folder: Path, what: str, shares: Shares = ALONE
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images uint8 [N, C, H, W] of a source and their features float32 [N, D], with a progress line.

    Both lie in files in `folder` while the context is open, so that memory does not grow with N. OSError: the disk
    is too small for them.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as place:
        count, images = len(source), None
        features = _file_tensor(Path(place) / "features", (count, extractor.dim), torch.float32)

        def store(which: slice, batch: Tensor, of_batch: Tensor) -> None:
            nonlocal images
            if images is None:
                images = _file_tensor(Path(place) / "images", (count, *batch.shape[1:]), torch.uint8)
            images[which], features[which] = batch, of_batch

        each_batch(source, extractor, batch_size, what, store, shares)
        assert images is not None
        yield images, features


def _file_tensor(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over a new file, whose space is taken now: a disk that fills up later would kill the process."""
    size = math.prod(shape)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What every seed block is measured against, and how.

    floor_fd: of `fewstep.eval.quality.floor`, None where there is none. logits: of the extractor. training: features of
    training images, None where they are not searched.
    """

    reference: Reference
    floor_fd: float | None
    kid_subset_size: int
    logits: Callable[[Tensor], Tensor] | None = None
    training: TrainingFeatures | None = None

    @cached_property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(self.reference.statistics)

    def __call__(self, features: Tensor) -> dict[str, float]:
        """The metrics of one seed block's features [N, D].

        `fd`: Frechet distance. Where the reference has features too: `fd_minus_floor`, `kid`, and `precision` and
        `recall` in 0..1. Where there are images enough: `fd_infinity`, the distance extrapolated to infinitely many,
        and `fd_infinity_error`. Where there are logits: `inception_score`. Where training features are searched:
        `copies_in_features`, a share in 0..1.
        """
        fd = frechet_distance(statistics(features), self.reference.statistics)
        metrics = {"fd": fd}
        if self.floor_fd is not None:
            metrics["fd_minus_floor"] = fd - self.floor_fd
        if (real := self.reference.features) is not None:
            metrics["kid"] = kernel_distance(features, real, self.kid_subset_size)
            metrics["precision"], metrics["recall"] = precision_recall(features, real)
        if (limit := self.extrapolation(features)) is not None:
            metrics["fd_infinity"], metrics["fd_infinity_error"] = limit
        if self.logits is not None:
            metrics["inception_score"] = inception_score(features, self.logits)
        if self.training is not None:
            metrics["copies_in_features"] = self.training.nearest(features).share(self.training.threshold)
        return metrics


def add_block(
    quality: dict[str, Any] | None, protocol: Protocol, seed: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """The "quality" part of a result file with one seed block more; of one block there is no standard deviation."""
    earlier = quality or {"seeds": [], "metrics": {}}
    summary = {}
    for name, value in metrics.items():
        values = [*earlier["metrics"].get(name, {"values": []})["values"], value]
        summary[name] = {"values": values, "mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}
    seeds = [*earlier["seeds"], seed]
    return {"protocol_hash": protocol.hash, "protocol": protocol.to_json(), "seeds": seeds, "metrics": summary}
