"""Sample grids for the page: cut, joined and scaled so that every pixel of the model stays a sharp square."""

import base64
import io
from dataclasses import dataclass

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
    tiled = _rgba(png)
    return _picture(_parted([_row(tiled, line, side) for line in range(tiled.height // side)], side), GRID_WIDTH)


def neighbours(png: bytes, side: int, columns: slice) -> Picture:
    """Some columns of neighbours.png: generated images above, the nearest training images below."""
    tiled = _rgba(png)
    return _picture(_parted([_row(tiled, line, side)[columns] for line in range(2)], side), NEIGHBOURS_WIDTH)


def strip(png: bytes, side: int) -> Picture:
    """The first images of an 8x8 grid in one row: 16 where they fit the page at their own size, else 8."""
    tiled = _rgba(png)
    images = [image for line in range(2) for image in _row(tiled, line, side)]
    fit = STRIP_IMAGES if STRIP_IMAGES * (side + 1) <= STRIP_WIDTH else SIDE
    return _picture(_parted([images[:fit]], side), STRIP_WIDTH)


def _rgba(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGBA")


def _row(tiled: Image.Image, line: int, side: int) -> list[Image.Image]:
    return [tiled.crop((x, line * side, x + side, (line + 1) * side)) for x in range(0, tiled.width, side)]


def _parted(rows: list[list[Image.Image]], side: int) -> Image.Image:
    """Rows of equal images with one transparent pixel between neighbours."""
    step = side + 1
    sheet = Image.new("RGBA", (len(rows[0]) * step - 1, len(rows) * step - 1))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * step, y * step))
    return sheet


def _picture(image: Image.Image, limit: int) -> Picture:
    """Shown at the largest multiple (below 3: half multiple) of its size within `limit` CSS pixels."""
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
