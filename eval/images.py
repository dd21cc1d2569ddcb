"""Images to be measured: always uint8 [N, C, H, W], made from floats in one function."""

import json
import math
from collections.abc import Iterator, Sequence
from hashlib import sha256

import torch
from PIL import Image
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.interfaces import ALONE, ImageSource, IndexedImages, Sampler, Shares
from fewstep.eval.noise import KeyedNoise

LONGEST_SIDE = 4096  # pixels
BLOCK = 1000  # images of a source in memory at a time
ENCODING = "uint8 = round(127.5 x + 127.5) clamped to 0..255, x in [-1, 1]"


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8: round(127.5 x + 127.5), half to even, clamped to 0..255.

    ValueError names the first image that holds NaN or infinity; nothing turns them into a grey value.
    """
    finite = torch.isfinite(x.flatten(1)).all(1)
    if not bool(finite.all()):
        raise ValueError(f"image {int((~finite).nonzero()[0])} of the batch is not finite")
    return (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def check_size(name: object, shape: Sequence[object]) -> None:
    """UserError unless a model's shape (C, H, W) is that of an image: sides of 1 to 4,096 pixels, 1 to 64 channels."""
    limits = (64, LONGEST_SIDE, LONGEST_SIDE)
    if len(shape) != 3 or not all(isinstance(n, int) and 1 <= n <= most for n, most in zip(shape, limits, strict=True)):
        remedy = f"makes images (C, H, W) = {tuple(shape)}; sides are 1 to {LONGEST_SIDE:,} pixels"
        raise UserError(name, None, remedy)


def check_varied(name: str, images: Tensor | IndexedImages) -> None:
    """UserError where all images [N, C, H, W] are the same one: nothing can be measured on a spread of zero."""
    source = indexed(images)
    first = source.images(0, 1)
    if len(source) > 1 and all(torch.equal(block, first.expand_as(block)) for block in _blocks(source)):
        low, high = int(first.min()), int(first.max())
        what = f"one flat grey of {low}" if low == high else "one picture"
        remedy = f"all {len(source):,} images are the same ({what}): nothing can be measured on them"
        raise UserError(name, None, remedy)


def full_range_share(images: Tensor | IndexedImages) -> float:
    """The share of uint8 [N, C, H, W] that reach from 0 to 255, in 0..1; blocks of a file are read one by one.

    Few photographs do; all images do that were scaled by their own minimum and maximum.
    """
    blocks = (block.flatten(1) for block in _blocks(indexed(images)))
    reaching = [(block.amin(1) == 0) & (block.amax(1) == 255) for block in blocks]
    return torch.cat(reaching).double().mean().item()


def pixels_sha256(images: Tensor | IndexedImages) -> str:
    """sha256 of the shape (as a JSON list) and the pixels of uint8 [N, C, H, W]."""
    if isinstance(images, Tensor) and images.dtype != torch.uint8:
        raise TypeError(f"uint8 expected, not {images.dtype}")
    source, digest = indexed(images), sha256()
    for number, block in enumerate(_blocks(source)):
        if number == 0:
            digest.update(json.dumps([len(source), *block.shape[1:]]).encode())
        digest.update(block.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def indexed(images: Tensor | IndexedImages) -> IndexedImages:
    """A uint8 tensor [N, C, H, W] as a source; a source as it is."""
    return TensorImages(images) if isinstance(images, Tensor) else images


def _blocks(source: ImageSource) -> Iterator[Tensor]:
    return (source.images(start, min(start + BLOCK, len(source))) for start in range(0, len(source), BLOCK))


class TensorImages:
    """An ImageSource over a uint8 tensor [N, C, H, W]."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dtype != torch.uint8 or tensor.dim() != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], not {tensor.dtype} {tuple(tensor.shape)}")
        self.tensor = tensor

    def images(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1, uint8 [N, C, H, W]."""
        return self.tensor[start:stop]

    def take(self, indices: Tensor) -> Tensor:
        """The images of `indices` [B], uint8 [B, C, H, W]."""
        return self.tensor[indices]

    def __len__(self) -> int:
        return len(self.tensor)


class Picked:
    """Some images of a source, in an order of their own: `indices` int64 [N]."""

    def __init__(self, source: IndexedImages, indices: Tensor) -> None:
        self.source, self.indices = source, indices

    def images(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1, uint8 [N, C, H, W]."""
        return self.source.take(self.indices[start:stop])

    def take(self, indices: Tensor) -> Tensor:
        """The images of `indices` [B] of these, uint8 [B, C, H, W]."""
        return self.source.take(self.indices[indices])

    def __len__(self) -> int:
        return len(self.indices)


class StoredImages(TensorImages):
    """Images that something else made, to be judged beside samplers and not timed: uint8 [N, C, H, W]."""

    kind = "images"
    nfe = network_parameters = None
    schedule: Sequence[float] = ()

    def __init__(self, name: str, label: str, images: Tensor) -> None:
        super().__init__(images)
        self.name, self.label = name, label
        self.shape: tuple[int, int, int] = tuple(images.shape[1:])  # type: ignore[assignment]

    def block(self, seed: int, count: int) -> TensorImages:
        """Images seed * count .. (seed + 1) * count - 1: what takes the place of a seed block."""
        return TensorImages(self.tensor[seed * count : (seed + 1) * count])


def made_in_shares(source: ImageSource, start: int, stop: int, batch_size: int, shares: Shares = ALONE) -> Tensor:
    """Images start..stop-1 of a source, uint8 [N, C, H, W], made in batches that are dealt to the processes in turn."""
    starts, made = range(start, stop, batch_size), list[Tensor]()
    for first in range(0, len(starts), shares.number):
        mine = starts[first:][shares.index : shares.index + 1]
        own = [source.images(each, min(each + batch_size, stop)) for each in mine]
        made += [images for theirs in shares.gather(own) for images in theirs]
    return torch.cat(made)


class Generated:
    """An ImageSource whose image i depends on (weights, sampler, seed, i) alone.

    Image i has KeyedNoise (seed, i) and, for a conditional sampler, the label i % num_classes, or of `labels` the one
    at i % len(labels). Batches change the floats by rounding only (about 1e-6, so now and then a pixel by one level of
    255).
    """

    def __init__(
        self, sampler: Sampler, seed: int, count: int, batch_size: int, labels: Sequence[int] | None = None
    ) -> None:
        self.sampler, self.seed, self.count, self.batch_size, self.labels = sampler, seed, count, batch_size, labels

    def images(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1, uint8 [N, C, H, W] on the CPU; UserError when the sampler returns NaN."""
        starts = range(start, min(stop, self.count), self.batch_size)
        return torch.cat([self._batch(i, min(i + self.batch_size, stop, self.count)) for i in starts])

    def __len__(self) -> int:
        return self.count

    @torch.inference_mode()
    def _batch(self, start: int, stop: int) -> Tensor:
        noise = KeyedNoise(self.sampler.shape, self.seed, start, stop)
        x = self.sampler.sample(noise, labels_for(self.sampler, start, stop, self.labels))
        try:
            return to_uint8(x).cpu()
        except ValueError as error:
            where = f"seed {self.seed}, images {start} to {stop - 1}"
            remedy = f"{where}: {error}; the network has diverged, train it again"
            raise UserError(self.sampler.name, None, remedy) from None


def labels_for(sampler: Sampler, start: int, stop: int, given: Sequence[int] | None = None) -> Tensor | None:
    """The labels [stop - start] of images start..stop-1, all classes or those `given` in turn; None: unconditional."""
    if sampler.num_classes is None:
        return None
    turns = torch.tensor(given if given is not None else range(sampler.num_classes))
    return turns[torch.arange(start, stop) % len(turns)]


def grid(images: Tensor, columns: int = 8, padding: int = 0) -> Image.Image:
    """uint8 [N, C, H, W] with C in {1, 3} -> one picture at native pixels, row by row.

    `padding` is the white space between neighbours in pixels; missing images of the last row stay white.
    """
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = torch.full((rows * columns, channels, height + padding, width + padding), 255, dtype=torch.uint8)
    sheet[:count, :, :height, :width] = images
    tiled = sheet.view(rows, columns, *sheet.shape[1:]).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    tiled = tiled[: len(tiled) - padding, : tiled.shape[1] - padding]
    return Image.fromarray(tiled.squeeze(-1).contiguous().numpy())
