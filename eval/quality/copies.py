"""Near-copies of training images: generated images that lie closer to one than real images lie to each other.

Distances are Euclidean, in pixels and in features. In pixels (grey levels of 0..255) a copy is near zero whatever the
extractor, and 60,000 training images are affordable on a processor. In features a copy is found that was shifted,
or drawn a little otherwise. Both thresholds are calibrated on the training images: the distance below which 1 % of
them have their nearest other training image. A model that has learned the distribution but copies nothing gives about
1 %. A share well above it means copies, or images that are smoother than the real ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHARE, SAMPLE, CHUNK = 0.01, 5000, 500


@dataclass(frozen=True)
class Neighbours:
    """For each of N images the nearest training image: its index int64 [N] and distance float64 [N]."""

    index: Tensor
    distance: Tensor

    def share(self, threshold: float) -> float:
        """The share whose neighbour is at most that far away, in 0..1."""
        return (self.distance <= threshold).double().mean().item()


class TrainingFeatures:
    """Features of training images, float32 [M, D], ready for nearest-neighbour search.

    `threshold` is the distance at or below which an image is a near-copy; `how` says how it was found.
    """

    distance = "feature distance"

    def __init__(self, features: Tensor, device: torch.device | str = "cpu") -> None:
        self.vectors, self.device = features, torch.device(device)
        self.there = features.to(device)
        self.squares = self.there.square().sum(1)
        self._calibrate(features)

    def _calibrate(self, training: Tensor) -> None:
        count = len(training)
        sample = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:SAMPLE]
        self.threshold = self.nearest(training[sample], leave_out=sample).distance.quantile(SHARE).item()
        self.how = (
            f"{self.distance} to the nearest of {count} training images, at or below the distance under which "
            f"{SHARE:.0%} of {len(sample)} training images have their nearest other one"
        )

    def nearest(self, x: Tensor, leave_out: Tensor | None = None) -> Neighbours:
        """The nearest of each of float32 [N, D], in blocks; row i does not find leave_out[i].

        Found by float32 products, then measured exactly: near zero those products have no digits left.
        """
        found, exact = [], []
        for start in range(0, len(x), CHUNK):
            part = x[start : start + CHUNK]
            moved = part.to(self.device)
            distance = self.squares - 2 * moved @ self.there.T
            if leave_out is not None:
                skip = leave_out[start : start + CHUNK].to(self.device)
                distance[torch.arange(len(moved), device=self.device), skip] = torch.inf
            found.append(distance.argmin(1).cpu())
            exact.append((part.double() - self.vectors[found[-1]].double()).norm(dim=1))
        return Neighbours(torch.cat(found), torch.cat(exact))


class TrainingImages(TrainingFeatures):
    """The training images, uint8 [M, C, H, W], ready for nearest-neighbour search in pixels.

    `mirrored`: the network was trained on mirrored images too, so a mirrored copy counts as a copy.
    """

    distance = "pixel distance"

    def __init__(self, images: Tensor, mirrored: bool, device: torch.device | str = "cpu") -> None:
        self.images, self.mirrored = images, mirrored
        super().__init__(_centred(images), device)
        self.how += ", mirrored images included" if mirrored else ""

    def _calibrate(self, training: Tensor) -> None:
        super()._calibrate(self.images)

    def nearest(self, x: Tensor, leave_out: Tensor | None = None) -> Neighbours:
        """The nearest training image of each of uint8 [N, C, H, W]; image i does not find leave_out[i]."""
        plain = super().nearest(_centred(x), leave_out)
        if not self.mirrored:
            return plain
        flipped = super().nearest(_centred(x.flip(-1)), leave_out)
        closer = flipped.distance < plain.distance
        return Neighbours(
            torch.where(closer, flipped.index, plain.index),
            torch.where(closer, flipped.distance, plain.distance),
        )


def _centred(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float32 [N, C*H*W] in -127.5..127.5."""
    return images.flatten(1).float() - 127.5
