"""Sample grids for the page: cut, joined and scaled so that every pixel of the model stays a sharp square."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 8  # images along a side of a stored grid
STRIP_IMAGES, STRIP_WIDTH, GRID_WIDTH, NEIGHBOURS_WIDTH = 16, 1080, 396, 580


@dataclass(frozen=True)
class Picture:
    """An inline image and the width in CSS pixels it is shown at; sharp: enlarged, pixels as squares."""

    uri: str
    width: int
    sharp: bool


def grid(png: bytes, side: int) -> Picture:
    """Square images tiled without gaps, `side` pixels each, parted by a transparent pixel for the page."""
    return _picture(tiles(png, side), GRID_WIDTH)


def neighbours(png: bytes, side: int, columns: slice) -> Picture:
    """Some columns of neighbours.png: generated images above, the nearest training images below."""
    return _picture(tiles(png, side)[:, columns], NEIGHBOURS_WIDTH)


def strip(png: bytes, side: int) -> Picture:
    """The first images of an 8x8 grid in one row: 16 where they fit the page at their own size, else 8."""
    fit = STRIP_IMAGES if STRIP_IMAGES * (side + 1) <= STRIP_WIDTH else SIDE
    return _picture(np.concatenate(tiles(png, side)[:2])[None, :fit], STRIP_WIDTH)


def tiles(png: bytes, side: int) -> np.ndarray:
    """The square images of a tiled PNG: uint8 [rows, columns, side, side, 4], RGBA."""
    with Image.open(io.BytesIO(png)) as image:
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
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(uri, width, scale >= 1)


def image_side(grid: bytes) -> int:
    """Pixels along a side of each image of an 8x8 grid."""
    with Image.open(io.BytesIO(grid)) as image:
        return image.width // SIDE
