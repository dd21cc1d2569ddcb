"""The quality of one sampler: its metrics over seed blocks."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from fewstep.eval.extractors import Extractor
from fewstep.eval.extrapolation import Extrapolation
from fewstep.eval.interfaces import ImageSource
from fewstep.eval.metrics import frechet_distance, kernel_distance, precision_recall, statistics
from fewstep.eval.protocol import Protocol
from fewstep.eval.reference import BATCH, Reference
from fewstep.progress import ProgressLine

SCRATCH = ".scratch-"


@contextmanager
def generated(
    source: ImageSource, extractor: Extractor, batch_size: int, folder: Path, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images uint8 [N, C, H, W] of a source and their features float32 [N, D], with a progress line.

    Both lie in files in `folder` while the context is open, so that memory does not grow with N. OSError: the disk
    is too small for them.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as place, ProgressLine(what, len(source)) as line:
        count, done, images = len(source), 0, None
        features = _file_tensor(Path(place) / "features", (count, extractor.dim), torch.float32)
        for start in range(0, count, batch_size):
            made = source.images(start, start + batch_size)
            if images is None:
                images = _file_tensor(Path(place) / "images", (count, *made.shape[1:]), torch.uint8)
            images[start : start + len(made)] = made
            for part in made.split(BATCH):
                features[done : done + len(part)] = extractor(part)
                done += len(part)
                line.update(done, f"{done:,} of {count:,}")
        assert images is not None
        yield images, features


def _file_tensor(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over a new file, whose space is taken now: a disk that fills up later would kill the process."""
    size = math.prod(shape)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)


def judge(
    features: Tensor,
    reference: Reference,
    extrapolation: Extrapolation,
    floor_fd: float | None,
    kid_subset_size: int,
) -> dict[str, float]:
    """The metrics of one seed block's features [N, D].

    `fd`: Frechet distance. Where the reference has features too: `fd_minus_floor`, `kid`, and `precision` and
    `recall` in 0..1. Where there are images enough: `fd_infinity`, the distance extrapolated to infinitely many,
    and `fd_infinity_error`.
    """
    fd = frechet_distance(statistics(features), reference.statistics)
    metrics = {"fd": fd}
    if floor_fd is not None:
        metrics["fd_minus_floor"] = fd - floor_fd
    if reference.features is not None:
        metrics["kid"] = kernel_distance(features, reference.features, kid_subset_size)
        metrics["precision"], metrics["recall"] = precision_recall(features, reference.features)
    if (limit := extrapolation(features)) is not None:
        metrics["fd_infinity"], metrics["fd_infinity_error"] = limit.distance, limit.error
    return metrics


def add_block(
    quality: dict[str, Any] | None, protocol: Protocol, seed: int, metrics: dict[str, float]
) -> dict[str, Any]:
    """The "quality" part of a result file with one seed block more."""
    earlier = quality["metrics"] if quality else {}
    seeds = [*(quality["seeds"] if quality else []), seed]
    values = {name: [*earlier.get(name, {"values": []})["values"], value] for name, value in metrics.items()}
    summary = {name: _summary(entries) for name, entries in values.items()}
    return {"protocol_hash": protocol.hash, "protocol": protocol.to_json(), "seeds": seeds, "metrics": summary}


def _summary(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seed blocks; with one block there is no deviation to give."""
    return {
        "values": values,
        "mean": fmean(values),
        "sd": stdev(values) if len(values) > 1 else None,
    }
