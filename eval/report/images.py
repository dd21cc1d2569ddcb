"""The report's pictures: grids and neighbours as a benchmark writes them, and as the page shows them.

There they are cut, joined and scaled so that every pixel of the model stays a sharp square.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.eval import images as tiling
from fewstep.eval.quality.copies import Neighbours, TrainingImages
from fewstep.files import write_bytes, write_json

SIDE = 8  # images along a side of a stored grid
STRIP_IMAGES, STRIP_WIDTH, GRID_WIDTH, NEIGHBOURS_WIDTH = 16, 1080, 396, 580


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_grid(path: Path, images: Tensor, columns: int = 8) -> None:
    """Write uint8 [N, C, H, W] as one PNG at native pixels, without padding."""
    write_bytes(path, png(tiling.grid(images, columns)))


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


@dataclass(frozen=True)
class Picture:
    """An inline image and the width in CSS pixels it is shown at; sharp: enlarged, pixels as squares."""

    uri: str
    width: int
    sharp: bool


def grid(data: bytes, side: int) -> Picture:
    """Square images tiled without gaps, `side` pixels each, parted by a transparent pixel for the page."""
    return _picture(tiles(data, side), GRID_WIDTH)


def neighbours(data: bytes, side: int, columns: slice) -> Picture:
    """Some columns of neighbours.png: generated images above, the nearest training images below."""
    return _picture(tiles(data, side)[:, columns], NEIGHBOURS_WIDTH)


def strip(data: bytes, side: int) -> Picture:
    """The first images of an 8x8 grid in one row: 16 where they fit the page at their own size, else 8."""
    return _strip(tiles(data, side)[:2], side)


def strip_of_classes(data: bytes, side: int) -> Picture:
    """`strip` of a grid with a row for each class: the first images of each."""
    return _strip(tiles(data, side)[:, :2].swapaxes(0, 1), side)


def _strip(images: np.ndarray, side: int) -> Picture:
    fit = STRIP_IMAGES if STRIP_IMAGES * (side + 1) <= STRIP_WIDTH else SIDE
    return _picture(np.concatenate(images)[None, :fit], STRIP_WIDTH)


def tiles(data: bytes, side: int) -> np.ndarray:
    """The square images of a tiled PNG: uint8 [rows, columns, side, side, 4], RGBA."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGBA"))
    return pixels.reshape(-1, side, pixels.shape[1] // side, side, 4).swapaxes(1, 2)


def _picture(images: np.ndarray, limit: int) -> Picture:
    """[rows, columns, side, side, 4], parted by a transparent pixel.

    Shown at the largest multiple (below 3: half multiple) of its size within `limit` CSS pixels.
    """
    parted = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0))).swapaxes(1, 2)
    image = Image.fromarray(parted.reshape(-1, parted.shape[2] * parted.shape[3], 4)[:-1, :-1])
    scale = int(2 * limit / image.width) / 2
    scale = int(scale) if scale >= 3 else scale
    width = int(image.width * scale) if scale >= 1 else min(limit, image.width)
    uri = "data:image/png;base64," + base64.b64encode(png(image)).decode()
    return Picture(uri, width, scale >= 1)


def image_side(grid: bytes) -> int:
    """Pixels along a side of each image of an 8x8 grid."""
    with Image.open(io.BytesIO(grid)) as image:
        return image.width // SIDE
