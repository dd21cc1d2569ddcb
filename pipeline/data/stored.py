"""Training images in memory, or on the disk as one array that is made once: any of them can be had at any time."""

import hashlib
import math
import os
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError, printable
from fewstep.eval.images import TensorImages, pixels_sha256
from fewstep.files import read_sealed, restore_folder, sealed, sha256_json, staged_folder, write_json
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.feed import IndexedFeed, TakeImages
from fewstep.pipeline.data.fingerprint import fingerprint
from fewstep.pipeline.data.load import DecodedRows, load_data
from fewstep.progress import say

PIXELS, LABELS, RECORD = "pixels.bin", "labels.bin", "record.json"
_FORM = {"fingerprint": str, "provenance": {"count": int, "shape": [int], "sha256": str}, "labels_sha256": (str, None)}
_SAID_EVERY = 15.0  # seconds


class PixelFile:
    """uint8 images [N, C, H, W] in a file, one after the other.

    They are read, not mapped: pages of a map that were touched count as memory of the process.
    """

    def __init__(self, path: Path, count: int, shape: Sequence[int]) -> None:
        self.path, self.count, self.shape = path, count, tuple(shape)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return PixelFile, (self.path, self.count, self.shape)

    def images(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1, uint8 [N, C, H, W]."""
        found = torch.empty((max(min(stop, self.count) - start, 0), *self.shape), dtype=torch.uint8)
        self._read(found.numpy(), start)
        return found

    def take(self, indices: Tensor) -> Tensor:
        """The images of `indices` [B], uint8 [B, C, H, W]."""
        found = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for row, index in zip(found.numpy(), indices.tolist(), strict=True):
            self._read(row, index)
        return found

    def __len__(self) -> int:
        return self.count

    def _read(self, into: np.ndarray, index: int) -> None:
        view, position = into.reshape(-1).data, index * math.prod(self.shape)
        while len(view):
            if (length := os.preadv(self._file, [view], position)) == 0:
                raise UserError(self.path, None, f"was cut short; remove {self.path.parent} to make it again")
            view, position = view[length:], position + length


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """The training images that can be had in any order, in the order of their source."""

    pixels: TensorImages | PixelFile
    labels: Tensor | None
    """int64 [N], or None where the source has no labels."""
    class_names: tuple[str, ...] | None
    """Name of each label, where the source knows them."""
    provenance: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.provenance["shape"]
        return channels, height, width

    @property
    def num_classes(self) -> int | None:
        """How many classes the labels are of; None: there are no labels."""
        return None if self.labels is None else max(int(self.labels.max()) + 1, len(self.class_names or ()))

    @property
    def labels_sha256(self) -> str:
        """What the labels are known by."""
        assert self.labels is not None
        return sha256_json(self.labels.tolist())

    def images(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1, uint8 [N, C, H, W]."""
        return self.pixels.images(start, stop)

    def take(self, indices: Tensor) -> Tensor:
        """The images of `indices` [B], uint8 [B, C, H, W]."""
        return self.pixels.take(indices)

    def first(self, num: int) -> tuple[Tensor, Tensor | None]:
        """The first `num` images, uint8 [num, C, H, W], and their labels, int64 [num]."""
        return self.images(0, num), None if self.labels is None else self.labels[:num]

    def some(self, most: int) -> Tensor:
        """All images that are in memory; of those on the disk a fixed sample, of `most` numbers together."""
        if isinstance(self.pixels, TensorImages):
            return self.pixels.tensor
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self.take(order[: most // math.prod(self.shape)].sort().values)

    def feed(self, seed: int, batch_size: int, *, labelled: bool) -> IndexedFeed:
        """Batches of all images in an order of each epoch; with labels where there are some, whether needed or not."""
        return IndexedFeed(TakeImages(self.pixels, self.labels), seed, batch_size)

    def __len__(self) -> int:
        return len(self.pixels)


def in_memory(config: DataConfig) -> StoredData:
    """The images of `config.split` as one tensor."""
    data = load_data(config, config.split)
    pixels = TensorImages(data.images)
    return StoredData(pixels=pixels, labels=data.labels, class_names=data.class_names, provenance=data.provenance)


def on_disk(config: DataConfig, folder: Path, *, checked: bool = True) -> StoredData:
    """The images of `config.split` as an array in `folder`, which is made where it is missing or of other files.

    checked: whether its bytes are compared with what was written. UserError: they have changed.
    """
    restore_folder(folder)
    now = fingerprint(config)
    record = read_sealed(folder / RECORD, _FORM) if (folder / RECORD).is_file() else None
    if record is None or record["fingerprint"] != now:
        _make(config, folder, now)
        record = read_sealed(folder / RECORD, _FORM)
    facts = record["provenance"]
    pixels = PixelFile(folder / PIXELS, facts["count"], facts["shape"])
    labels = None
    if record["labels_sha256"] is not None:
        kept = (folder / LABELS).read_bytes()
        if hashlib.sha256(kept).hexdigest() != record["labels_sha256"]:
            raise UserError(folder / LABELS, None, f"is corrupt (its sha256 changed); remove {folder} to make it again")
        labels = torch.from_numpy(np.frombuffer(kept, "<i8").astype(np.int64))
    if checked and (_size(pixels) != os.path.getsize(pixels.path) or pixels_sha256(pixels) != facts["sha256"]):
        raise UserError(pixels.path, None, f"is corrupt (its sha256 changed); remove {folder} to make it again")
    names = None if facts["classes"] is None else tuple(facts["classes"])
    return StoredData(pixels=pixels, labels=labels, class_names=names, provenance=facts)


def _size(pixels: PixelFile) -> int:
    return len(pixels) * math.prod(pixels.shape)


def _make(config: DataConfig, folder: Path, files: str) -> None:
    """Write the array row by row, and what is known of it; a folder that is there gives way when it is whole."""
    rows = DecodedRows(config, config.split)
    say(f"data: writing the images of {printable(config.source)} into {folder}")
    found: list[Any] = []
    shape: tuple[int, ...] = ()
    with staged_folder(folder) as stage:
        said = time.monotonic()
        with open(stage / PIXELS, "xb") as file, closing(iter(rows)) as decoded:
            for array, label in decoded:
                pixels = array.transpose(2, 0, 1)
                shape = pixels.shape
                file.write(pixels.tobytes())
                found.append(sys.intern(label) if isinstance(label, str) else label)
                if time.monotonic() - said > _SAID_EVERY:
                    said = time.monotonic()
                    say(f"  data: {len(found):,} images so far")
        labels, names = rows.labels(found)
        sha256 = pixels_sha256(PixelFile(stage / PIXELS, len(found), shape))
        record = {"fingerprint": files, "labels_sha256": None}
        if labels is not None:
            kept = labels.numpy().astype("<i8").tobytes()
            (stage / LABELS).write_bytes(kept)
            record["labels_sha256"] = hashlib.sha256(kept).hexdigest()
        record |= {"provenance": rows.provenance((len(found), *shape), sha256, labels, names)}
        write_json(stage / RECORD, sealed(record))
