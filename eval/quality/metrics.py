"""Distances between two sets of features, by torch-fidelity's functions, in float64.

`FD` is the Frechet distance of two Gaussians, called FID when the features are Inception's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

KID_SUBSETS, SEED, SCORE_SPLITS = 100, 2020, 10  # torch-fidelity's defaults
PART = 2500  # features converted to float64 at once
PRC_BLOCK = 500  # rows of a block of distances: with 50,000 columns, 100 MB


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] (divided by n - 1) of a set of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: Tensor) -> Statistics:
    """Statistics of features [N, D]; ValueError below two images."""
    return next(growing_statistics(features, torch.arange(len(features)), [len(features)]))


def growing_statistics(features: Tensor, order: Tensor, sizes: Sequence[int]) -> Iterator[Statistics]:
    """Statistics of the first sizes[0], sizes[1], ... of the rows `order` of features [N, D]; sizes ascend.

    In float64, part by part: the scatter of two sets together is the sum of theirs and of their means' (Chan et al.
    1979). ValueError below two images.
    """
    dim = features.shape[1]
    mean, scatter, done = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64), 0
    for size in sizes:
        if size < 2:
            raise ValueError(f"a covariance needs two images or more, not {size}")
        for rows in order[done:size].split(PART):
            part = features[rows].double()
            apart = part.mean(0) - mean
            part -= part.mean(0)
            scatter.addmm_(part.T, part)
            scatter.addr_(apart, apart, alpha=done * len(part) / (done + len(part)))
            mean += apart * (len(part) / (done + len(part)))
            done += len(part)
        yield Statistics(mean.numpy().copy(), (scatter / (done - 1)).numpy())


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), by torch-fidelity in float64."""
    pair = [{"mu": side.mean, "sigma": side.covariance} for side in (a, b)]
    return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]


def kernel_distance(generated: Tensor, real: Tensor, subset_size: int) -> float:
    """KID: unbiased MMD^2 with a cubic kernel in float64, mean over 100 subsets drawn by a fixed seed.

    torch-fidelity's kid_features_to_metric, subset by subset, so that no float64 copy of all features is made.
    ValueError when a set of features [N, D] is smaller than a subset.
    """
    rng = np.random.RandomState(SEED)

    def subset(features: Tensor) -> NDArray[np.float64]:
        rows = rng.choice(len(features), subset_size, replace=False)
        return features[torch.from_numpy(rows)].double().numpy()

    return float(np.mean([kernel_mmd(subset(generated), subset(real)) for _ in range(KID_SUBSETS)]))


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, 3 neighbours) of features [N, D], in 0..1."""
    metric = prc_features_to_metric(generated, real, save_cpu_ram=True, prc_batch_size=PRC_BLOCK, verbose=False)
    return metric[KEY_METRIC_PRECISION], metric[KEY_METRIC_RECALL]


def inception_score(features: Tensor, logits: Callable[[Tensor], Tensor]) -> float:
    """Inception Score (Salimans et al. 2016) of features [N, D]: mean over 10 splits of a fixed permutation.

    torch-fidelity's isc_features_to_metric, split by split, so that no float64 copy of all logits is made.
    """
    order = torch.from_numpy(np.random.RandomState(SEED).permutation(len(features)))
    splits = [order[i * len(order) // SCORE_SPLITS : (i + 1) * len(order) // SCORE_SPLITS] for i in range(SCORE_SPLITS)]
    scores = [isc_features_to_metric(logits(features[rows]), splits=1, shuffle=False) for rows in splits]
    return float(np.mean([score[KEY_METRIC_ISC_MEAN] for score in scores]))
