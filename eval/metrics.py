"""Distances between two sets of features, by torch-fidelity's functions, in float64.

`FD` is the Frechet distance of two Gaussians, called FID when the features are Inception's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

KID_SUBSETS, KID_SEED = 100, 2020  # torch-fidelity's defaults


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] (divided by n - 1) of a set of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


class RunningStatistics:
    """Mean and covariance of features that come in batches: float64 sums about the first batch's mean."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Take in features [N, D]."""
        x = features.double().cpu()
        if self.count == 0:
            self.origin = x.mean(0)
            self.total, self.outer = torch.zeros_like(self.origin), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self.origin
        self.count += len(x)
        self.total += x.sum(0)
        self.outer += x.T @ x

    def result(self) -> Statistics:
        """The statistics so far; ValueError below two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two images or more, not {self.count}")
        mean = self.total / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Statistics((self.origin + mean).numpy(), covariance.numpy())


def statistics(features: Tensor) -> Statistics:
    """Statistics of features [N, D]."""
    running = RunningStatistics()
    for batch in features.split(5000):
        running.add(batch)
    return running.result()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), by torch-fidelity in float64."""
    pair = [{"mu": side.mean, "sigma": side.covariance} for side in (a, b)]
    return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]


def kernel_distance(generated: Tensor, real: Tensor, subset_size: int) -> float:
    """KID: unbiased MMD^2 with a cubic kernel, mean over 100 subsets drawn by a fixed seed.

    ValueError when a set of features [N, D] is smaller than a subset.
    """
    metric = kid_features_to_metric(
        generated.double(),
        real.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset_size,
        rng_seed=KID_SEED,
        verbose=False,
    )
    return metric[KEY_METRIC_KID_MEAN]


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, 3 neighbours) of features [N, D], in 0..1."""
    metric = prc_features_to_metric(generated, real, save_cpu_ram=True, verbose=False)
    return metric[KEY_METRIC_PRECISION], metric[KEY_METRIC_RECALL]
