"""The loss by noise level: where on the way from noise to an image a network still learns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS, SIGMA_MIN, SIGMA_MAX = 8, 0.002, 80.0
"""Equal parts of ln sigma between the two ends, of which the outer ones take what lies beyond."""

_STEP = (SIGMA_MAX / SIGMA_MIN) ** (1 / BINS)
KEYS = tuple(f"loss/{SIGMA_MIN * _STEP ** (index + 0.5):.2g}" for index in range(BINS))
"""What logs call the bins: loss/0.0039 to loss/41, by the middle of each; TensorBoard shows them in one group."""


def sums_and_counts(loss: Tensor, sigma: Tensor) -> Tensor:
    """The sum of the losses and their number in each bin [2, BINS], of losses [B] at noise levels [B].

    Not by scattered additions, whose order differs on a GPU from run to run.
    """
    place = ((sigma / SIGMA_MIN).log() / math.log(_STEP)).floor().clamp(0, BINS - 1)
    within = place == torch.arange(BINS, device=place.device).unsqueeze(1)
    return torch.stack([torch.where(within, loss, 0.0).sum(1), within.sum(1)])


@dataclass
class LevelLosses:
    """Sums of the losses and their numbers in each bin since the last log line."""

    sums: list[float] = field(default_factory=lambda: [0.0] * BINS)
    counts: list[float] = field(default_factory=lambda: [0.0] * BINS)

    def add(self, sums: Sequence[float], counts: Sequence[float]) -> None:
        """Take in the losses of a step."""
        self.sums[:] = [mine + more for mine, more in zip(self.sums, sums, strict=True)]
        self.counts[:] = [mine + more for mine, more in zip(self.counts, counts, strict=True)]

    def means(self) -> dict[str, float]:
        """The mean loss of each bin that has any, by its key in a log; starts anew."""
        found = zip(KEYS, self.sums, self.counts, strict=True)
        means = {key: total / count for key, total, count in found if count}
        self.sums[:], self.counts[:] = [0.0] * BINS, [0.0] * BINS
        return means
