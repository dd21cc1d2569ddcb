"""Pictures that the report shows: sample grids, and generated images beside their nearest training images."""

from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from fewstep.eval.images import grid
from fewstep.eval.quality.copies import Neighbours, TrainingImages
from fewstep.files import write_bytes, write_json


def save_grid(path: Path, images: Tensor, columns: int = 8) -> None:
    """Write uint8 [N, C, H, W] as one PNG at native pixels, without padding."""
    buffer = BytesIO()
    grid(images, columns).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def save_neighbours(
    folder: Path, sampler: str, images: Tensor, neighbours: Neighbours, training: TrainingImages
) -> None:
    """Write neighbours.png (generated images above the training image nearest to each) and neighbours.json.

    Eight columns are the first images of the block, eight those that lie closest to a training image.
    """
    closest = neighbours.distance.argsort()[:8]
    picked = torch.cat([torch.arange(min(8, len(images))), closest])
    found = neighbours.index[picked]
    save_grid(folder / "neighbours.png", torch.cat([images[picked], training.images[found]]), len(picked))
    columns = [
        {
            "image": int(i),
            "training_image": int(neighbours.index[i]),
            "distance": float(neighbours.distance[i]),
            "picked": "first" if k < len(picked) - len(closest) else "closest",
        }
        for k, i in enumerate(picked)
    ]
    write_json(
        folder / "neighbours.json",
        {"format": 1, "sampler": sampler, "threshold": training.threshold, "columns": columns},
    )
