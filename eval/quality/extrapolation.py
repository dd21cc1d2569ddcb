"""The Frechet distance of infinitely many generated images (Chong and Forsyth 2020, "Effectively unbiased FID").

Over n images the distance is too large by about b/n, with b a property of the model, so that ranking two models by it
at one n can be wrong. A line through the distance at several n, against 1/n, meets 1/n = 0 at the distance without
that bias. The bias of the reference's own number of images stays: it is the same for every row of a table.
"""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh, eigvalsh
from scipy.stats import linregress
from torch import Tensor

from fewstep.eval.quality.metrics import Statistics, growing_statistics

SIZES = 10


class Extrapolation:
    """Distances of growing subsets to one reference; the root of its covariance is taken once."""

    def __init__(self, reference: Statistics) -> None:
        self.reference = reference

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """The symmetric square root of the reference's covariance."""
        values, vectors = eigh(self.reference.covariance)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def __call__(self, features: Tensor) -> tuple[float, float] | None:
        """The distance at infinitely many images, of features [N, D], and the standard error of the line's intercept.

        None where N < 2 D: below D images a covariance is singular, and no line fits. The subsets overlap, so the error
        is a little too small; the deviation over seed blocks is the better one.
        """
        count, dim = features.shape
        if count < 2 * dim:
            return None
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        sizes = np.linspace(count // 2, count, SIZES).round().astype(int)
        distances = [self.distance(each) for each in growing_statistics(features, order, sizes.tolist())]
        line: Any = linregress(1 / sizes, distances)  # its type has no names for its parts
        return float(line.intercept), float(line.intercept_stderr)

    def distance(self, generated: Statistics) -> float:
        """The Frechet distance through a symmetric matrix: torch-fidelity's to rounding, and faster."""
        a, b = generated, self.reference
        shared = np.sqrt(eigvalsh(self.root @ a.covariance @ self.root).clip(0)).sum()
        between = a.mean - b.mean
        return float(between @ between + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)
