"""Whether images are of the class that was asked for, and how well each class is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.eval.quality.metrics import PRC_BLOCK, frechet_distance, statistics

NEIGHBOURS = 5


@dataclass(frozen=True)
class RealClasses:
    """Features [M, D] float32 of real images and their classes [M] int64: an image is of the class of those nearest it.

    names: of the classes, in their order.
    """

    features: Tensor
    labels: Tensor
    names: Sequence[str]

    def found(self, features: Tensor, *, themselves: bool = False) -> Tensor:
        """The class [N] that most of the NEIGHBOURS real images nearest to each of features [N, D] are of.

        Where two have as many the nearer ones decide. `themselves`: the images are the real ones, without themselves.
        """
        votes = torch.nn.functional.one_hot(self.labels, len(self.names)).double()
        weights = 1 + 1e-3 * torch.arange(NEIGHBOURS, 0, -1, dtype=torch.float64)
        found = []
        for start in range(0, len(features), PRC_BLOCK):
            distance = torch.cdist(features[start : start + PRC_BLOCK], self.features)
            if themselves:
                rows = torch.arange(len(distance))
                distance[rows, rows + start] = torch.inf
            nearest = distance.topk(NEIGHBOURS, largest=False).indices
            found.append((votes[nearest] * weights[:, None]).sum(1).argmax(1))
        return torch.cat(found)

    @cached_property
    def real_agreement(self) -> float:
        """The share of the real images that are found to be of their class by the others, in 0..1."""
        return float((self.found(self.features, themselves=True) == self.labels).double().mean())

    def __call__(self, features: Tensor, asked: Tensor) -> dict[str, float]:
        """Metrics of features [N, D] of images that were asked to be of classes [N].

        `class_agreement`: the share that is found to be of it. `fd_class_N` of each class of which there are more
        images than features on both sides: the Frechet distance from the real images of class N.
        """
        agreement = float((self.found(features) == asked).double().mean())
        metrics = {"class_agreement": agreement}
        for number in range(len(self.names)):
            pair = [features[asked == number], self.features[self.labels == number]]
            if min(map(len, pair)) > features.shape[1]:
                metrics[f"fd_class_{number}"] = frechet_distance(*map(statistics, pair))
        return metrics
