"""Near-copies of training images: generated images that lie closer to one than real images lie to each other.

Distances are Euclidean in pixels (grey levels of 0..255), where a copy is near zero whatever the extractor,
and where 60,000 training images are affordable on a processor. The threshold is calibrated on the training
images: the distance below which 1 % of them have their nearest other training image. A model that has
learned the distribution but copies nothing gives about 1 %. A share well above it means copies, or images
that are smoother than the real ones.
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


class TrainingImages:
    """The training images, uint8 [M, C, H, W], ready for nearest-neighbour search.

    `mirrored`: the network was trained on mirrored images too, so a mirrored copy counts as a copy.
    `threshold` is the distance at or below which an image is a near-copy.
    """

    def __init__(self, images: Tensor, mirrored: bool, device: torch.device | str = "cpu") -> None:
        self.images, self.mirrored, self.device = images, mirrored, torch.device(device)
        self.flat = _centred(images).to(device)
        self.squares = self.flat.square().sum(1)
        sample = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        others = self.nearest(images[sample], leave_out=sample)
        self.threshold = others.distance.quantile(SHARE).item()
        self.how = (
            "pixel distance to the nearest training image, at or below the distance under which "
            f"{SHARE:.0%} of {len(sample)} training images have their nearest other one"
            + (", mirrored images included" if mirrored else "")
        )

    def nearest(self, images: Tensor, leave_out: Tensor | None = None) -> Neighbours:
        """The nearest training image of each of uint8 [N, C, H, W]; image i does not find leave_out[i]."""
        plain = self._nearest(images, leave_out)
        if not self.mirrored:
            return plain
        flipped = self._nearest(images.flip(-1), leave_out)
        closer = flipped.distance < plain.distance
        return Neighbours(
            torch.where(closer, flipped.index, plain.index),
            torch.where(closer, flipped.distance, plain.distance),
        )

    def share(self, neighbours: Neighbours) -> float:
        """The share of near-copies, in 0..1."""
        return (neighbours.distance <= self.threshold).double().mean().item()

    def _nearest(self, images: Tensor, leave_out: Tensor | None) -> Neighbours:
        """Found by float32 products, then measured exactly: near zero those products have no digits left."""
        index = []
        for start in range(0, len(images), CHUNK):
            x = _centred(images[start : start + CHUNK]).to(self.device)
            distance = self.squares - 2 * x @ self.flat.T
            if leave_out is not None:
                skip = leave_out[start : start + CHUNK].to(self.device)
                distance[torch.arange(len(x), device=self.device), skip] = torch.inf
            index.append(distance.argmin(1).cpu())
        found = torch.cat(index)
        exact = [
            (images[i : i + CHUNK].double() - self.images[found[i : i + CHUNK]].double()).flatten(1).norm(dim=1)
            for i in range(0, len(images), CHUNK)
        ]
        return Neighbours(found, torch.cat(exact))


def _centred(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float32 [N, C*H*W] in -127.5..127.5."""
    return images.flatten(1).float() - 127.5
