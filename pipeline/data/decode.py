"""Encoded images to uint8 arrays: the one place of resize, crop and colour conversion."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fewstep.errors import UserError, first_line
from fewstep.files import read_bounded

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""What Pillow may read an image as: none of its readers that start another program (EPS), none of odd formats."""
EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".pbm"),
    *(".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"),
)
"""How the names of files in these formats end, in lower case."""
MOST_BYTES = 2**29  # of an encoded image: more than Pillow's largest takes uncompressed
_ORIENTATION = 0x0112  # EXIF tag
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Silence Pillow's remarks on odd files; an image of suspicious size is an error that `Decoder` names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class Decoder:
    """Decodes the images of one data set to arrays of one shape.

    image_size: side of the square that images are resized and cropped to; None: all must be equal squares.
    channels: 1 or 3, converted to; None: all must be grey or all must be colour.
    """

    def __init__(self, *, image_size: int | None, channels: int | None) -> None:
        self._image_size, self._channels = image_size, channels
        self._first: tuple[str, Image.Image] | None = None
        self._resized = self._converted = self._rotated = False

    def decode(self, name: str, encoded: bytes | Path | None) -> np.ndarray:
        """uint8 [H, W, C] of an image file or of its bytes. UserError names an unsound image."""
        if encoded is None:
            raise UserError(name, None, "holds no image (null): remove the row")
        data = read_bounded(encoded, MOST_BYTES) if isinstance(encoded, Path) else encoded
        try:
            Image.init()  # fills Image.OPEN, in which a build of Pillow may lack some
            image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
            image.load()
            if image.getexif().get(_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
                self._rotated = True
            image = _plain(name, image)
        except (UserError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            limit = Image.MAX_IMAGE_PIXELS
            raise UserError(name, None, f"has more than {limit} pixels: make the image smaller") from None
        except Exception as error:  # Pillow's readers raise anything on a damaged file
            unknown = isinstance(error, Image.UnidentifiedImageError)  # whose text names a buffer, not a file
            why = "no known image format" if unknown else first_line(error)
            raise UserError(name, None, f"is not a readable image ({why}): replace it") from None
        return self.fit(name, image)

    def fit(self, name: str, image: Image.Image) -> np.ndarray:
        """uint8 [H, W, C] of an 8-bit grey or colour image, converted and resized as configured."""
        if 0 in image.size:
            raise UserError(name, None, "has no pixels: remove it")
        if self._first is None:
            self._first = name, image.copy()
        image = self._sized(name, self._coloured(name, image, *self._first), *self._first)
        array = np.asarray(image)
        return array[:, :, None] if array.ndim == 2 else array

    def _coloured(self, name: str, image: Image.Image, first: str, other: Image.Image) -> Image.Image:
        mode = other.mode if self._channels is None else "L" if self._channels == 1 else "RGB"
        if image.mode == mode:
            return image
        if self._channels is None:
            pair = f"{first} is {_colour(other)}, {name} is {_colour(image)}"
            raise UserError("data.channels", None, f"images differ: {pair}; set it to 1 or 3 to convert them")
        self._converted = True
        return image.convert(mode)

    def _sized(self, name: str, image: Image.Image, first: str, other: Image.Image) -> Image.Image:
        (width, height), size = image.size, self._image_size
        if size is None:
            if image.size != other.size:
                pair = f"{first} is {other.width}x{other.height}, {name} is {width}x{height}"
                raise UserError("data.image_size", None, f"images differ: {pair}; set it to resize and crop them")
            if width != height:
                remedy = f"{name} is {width}x{height}, not square; set it to resize and crop the images"
                raise UserError("data.image_size", None, remedy)
            return image
        if (width, height) == (size, size):
            return image
        self._resized = True
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        if width * height > (Image.MAX_IMAGE_PIXELS or 2**27):
            remedy = f"{image.width}x{image.height} is too long and narrow to resize to {size}: crop it"
            raise UserError(name, None, remedy)
        left, top = (width - size) // 2, (height - size) // 2
        return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))

    def transforms(self) -> list[str]:
        """What was done to the images so far, in words and in order."""
        done = []
        if self._rotated:
            done.append("turned upright by EXIF orientation")
        if self._converted:
            done.append("converted to grey (ITU-R 601)" if self._channels == 1 else "grey repeated to RGB")
        if self._resized:
            done.append(f"shorter side resized to {self._image_size} (bicubic, antialiased), cropped to the centre")
        return done


def _plain(name: str, image: Image.Image) -> Image.Image:
    """An 8-bit grey (L) or colour (RGB) image; 16 bits and transparency are refused, opaque alpha dropped."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in _DEEP:
        raise UserError(name, None, f"has 16 or more bits per pixel (mode {image.mode}): save it with 8")
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        opaque = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        if opaque.getextrema()[-1] != (255, 255):
            raise UserError(name, None, "has transparent pixels: put it on a background first")
        return opaque.convert("L" if opaque.mode == "LA" else "RGB")
    return image.convert("RGB")


def _colour(image: Image.Image) -> str:
    return "grey" if image.mode == "L" else "colour"
