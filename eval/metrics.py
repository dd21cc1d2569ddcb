"""Distances between two sets of features, by torch-fidelity's functions, in float64.

`FD` is the Frechet distance of two Gaussians, called FID when the features are Inception's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

KID_SUBSETS, KID_SEED = 100, 2020  # torch-fidelity's defaults
PART = 2500  # features converted to float64 at once
PRC_BLOCK = 500  # rows of a block of distances: with 50,000 columns, 100 MB


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] (divided by n - 1) of a set of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: Tensor, rows: Tensor | None = None) -> Statistics:
    """Statistics of features [N, D], or of some rows of them, summed in float64 part by part.

    ValueError below two images.
    """
    rows = torch.arange(len(features)) if rows is None else rows
    if len(rows) < 2:
        raise ValueError(f"a covariance needs two images or more, not {len(rows)}")
    mean = features.new_zeros(features.shape[1], dtype=torch.float64)
    covariance = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for part in rows.split(PART):
        mean += features[part].double().sum(0) / len(rows)
    for part in rows.split(PART):
        x = features[part].double() - mean
        covariance += x.T @ x / (len(rows) - 1)
    return Statistics(mean.numpy(), covariance.numpy())


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), by torch-fidelity in float64."""
    pair = [{"mu": side.mean, "sigma": side.covariance} for side in (a, b)]
    return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]


def kernel_distance(generated: Tensor, real: Tensor, subset_size: int) -> float:
    """KID: unbiased MMD^2 with a cubic kernel in float64, mean over 100 subsets drawn by a fixed seed.

    torch-fidelity's kid_features_to_metric, subset by subset, so that no float64 copy of all features is made.
    ValueError when a set of features [N, D] is smaller than a subset.
    """
    rng = np.random.RandomState(KID_SEED)

    def subset(features: Tensor) -> NDArray[np.float64]:
        rows = rng.choice(len(features), subset_size, replace=False)
        return features[torch.from_numpy(rows)].double().numpy()

    return float(np.mean([kernel_mmd(subset(generated), subset(real)) for _ in range(KID_SUBSETS)]))


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, 3 neighbours) of features [N, D], in 0..1."""
    metric = prc_features_to_metric(generated, real, save_cpu_ram=True, prc_batch_size=PRC_BLOCK, verbose=False)
    return metric[KEY_METRIC_PRECISION], metric[KEY_METRIC_RECALL]
