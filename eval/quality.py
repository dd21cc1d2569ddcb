"""The quality of one sampler: its metrics over seed blocks."""

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


def generate(source: ImageSource, extractor: Extractor, batch_size: int, what: str) -> tuple[Tensor, Tensor]:
    """All images uint8 [N, C, H, W] of a source and their features float32 [N, D], with a progress bar."""
    images, features, done = [], [], 0
    with ProgressLine(what, len(source)) as line:
        for start in range(0, len(source), batch_size):
            made = source.images(start, start + batch_size)
            images.append(made)
            for part in made.split(BATCH):
                features.append(extractor(part))
                done += len(part)
                line.update(done, f"{done:,} of {len(source):,}")
    return torch.cat(images), torch.cat(features)


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
