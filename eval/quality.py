"""The quality of one sampler: its metrics over seed blocks."""

from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fewstep.eval.copies import Neighbours, TrainingImages
from fewstep.eval.extractors import Extractor
from fewstep.eval.images import Generated
from fewstep.eval.metrics import frechet_distance, kernel_distance, precision_recall, statistics
from fewstep.eval.protocol import Protocol
from fewstep.eval.reference import BATCH, Reference


def generate(source: Generated, extractor: Extractor, what: str) -> tuple[Tensor, Tensor]:
    """All images uint8 [N, C, H, W] of a source and their features float32 [N, D], with a progress bar."""
    images, features = [], []
    with tqdm(total=len(source), desc=what, unit="image", disable=None, leave=False) as bar:
        for start in range(0, len(source), source.batch_size):
            made = source.images(start, start + source.batch_size)
            images.append(made)
            features += [extractor(part) for part in made.split(BATCH)]
            bar.update(len(made))
    return torch.cat(images), torch.cat(features)


def judge(
    images: Tensor,
    features: Tensor,
    reference: Reference,
    training: TrainingImages,
    floor_fd: float,
    kid_subset_size: int,
) -> tuple[dict[str, float], Neighbours]:
    """The metrics of one seed block, and each image's nearest training image.

    `fd`: Frechet distance; `fd_minus_floor`; `kid`; `precision`, `recall` and `copies` in 0..1.
    """
    fd = frechet_distance(statistics(features), reference.statistics)
    precision, recall = precision_recall(features, reference.features)
    neighbours = training.nearest(images)
    metrics = {
        "fd": fd,
        "fd_minus_floor": fd - floor_fd,
        "kid": kernel_distance(features, reference.features, kid_subset_size),
        "precision": precision,
        "recall": recall,
        "copies": training.share(neighbours),
    }
    return metrics, neighbours


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
