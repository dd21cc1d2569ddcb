"""Images and labels from any source, one by one or as one uint8 tensor, with their provenance.

Every source is a stream of encoded images; resize, crop and colour conversion happen in `decode`, in one place, and
are recorded. Value range: uint8, [0, 255].
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.images import pixels_sha256
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.decode import Decoder, pillow_warnings
from fewstep.pipeline.data.source import Rows, quiet_libraries

MOST_CLASSES = 2**31


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """One split of a data set, in memory, in the order of its source."""

    images: Tensor
    """uint8 [N, C, H, W], C is 1 or 3, H = W."""
    labels: Tensor | None
    """int64 [N], or None where the source has no labels."""
    class_names: tuple[str, ...] | None
    """Name of each label, where the source knows them."""
    provenance: dict[str, Any]
    """JSON-able: source, split, columns, count, shape, transforms, sha256 of the pixels."""


class DecodedRows:
    """The images of one split, uint8 [H, W, C] each, one by one in the order of the source, with labels as stored.

    UserError for whatever is wrong, as it is come to.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config, self.split = config, split
        self._decoder = Decoder(image_size=config.image_size, channels=config.channels)
        self._names: tuple[str, ...] | None = None
        self._columns: dict[str, str | None] = {}
        self._splits: dict[str, str] = {}
        self._left_out: list[str] = []

    def __iter__(self) -> Generator[tuple[np.ndarray, Any], None, None]:
        empty = True
        for row in self._digits() if self.config.source == "digits" else self._rows():
            empty = False
            yield row
        if empty:
            raise UserError("data.source", self.config.source, f"split {self.split!r} holds no images")

    def _digits(self) -> Iterator[tuple[np.ndarray, Any]]:
        """1,797 handwritten ones (UCI optical recognition, test part): 8x8, values 0 to 16."""
        from sklearn.datasets import load_digits  # a second of imports that other sources do not need

        bunch: Any = load_digits()
        self._names, self._columns = tuple(map(str, bunch["target_names"])), {"image": "images", "label": "target"}
        pixels = np.round(bunch["images"] * (255 / 16)).astype(np.uint8)
        for index, (digit, label) in enumerate(zip(pixels, bunch["target"].tolist(), strict=True)):
            yield self._decoder.fit(f"digit {index}", Image.fromarray(digit)), label

    def _rows(self) -> Iterator[tuple[np.ndarray, Any]]:
        with pillow_warnings(), quiet_libraries():
            rows = Rows(self.config, self.split)
            self._names, self._columns = rows.class_names, {"image": rows.image_column, "label": rows.label_column}
            self._splits, self._left_out = dict(rows.source.splits), [*rows.source.left_out]
            for name, encoded, label in rows:
                yield self._decoder.decode(name, encoded), label

    def labels(self, found: Sequence[Any]) -> tuple[Tensor | None, tuple[str, ...] | None]:
        """What came with all the images as int64 [N], and the names of the classes; None where they are no labels."""
        return _labels(found, self._names, self.config.label_column)

    def provenance(
        self, shape: Sequence[int], sha256: str, labels: Tensor | None, names: tuple[str, ...] | None
    ) -> dict[str, Any]:
        """What is kept of images [N, C, H, W] of this split and of their labels."""
        transforms = ["value = round(v * 255 / 16)"] if self.config.source == "digits" else []
        return {
            "source": self.config.source,
            "split": self.split,
            "columns": self._columns | ({"label": None} if labels is None else {}),
            "count": shape[0],
            "shape": list(shape[1:]),
            "classes": None if names is None else list(names),
            "splits": self._splits,
            "left_out": self._left_out,
            "transforms": transforms + self._decoder.transforms(),
            "sha256": sha256,
        }


def is_class(label: object, classes: int = MOST_CLASSES) -> bool:
    """Return whether a label is the number of one of `classes` classes."""
    return isinstance(label, int) and 0 <= label < classes


def found_lines(provenance: dict[str, Any]) -> list[str]:
    """Say what was found in a source: images, size, classes, splits, and what was left out and why."""
    (channels, height, width), names = provenance["shape"], provenance["classes"]
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    said = [f"{provenance['count']:,} images, {width}x{height} {colour}"]
    if names is not None:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        said.append(f"{len(names)} classes ({shown})")
    elif provenance["columns"].get("label") is None:
        said.append("no labels")
    if len(splits := provenance.get("splits", {})) > 1:
        said.append("splits: " + ", ".join(f"{name} {size}".strip() for name, size in splits.items()))
    return ["; ".join(said), *(f"left out: {each}" for each in provenance.get("left_out", ()))]


def load_data(config: DataConfig, split: str) -> ImageData:
    """Read one split (`config.split` or `config.reference_split`). UserError for whatever is wrong."""
    rows = DecodedRows(config, split)
    arrays: list[np.ndarray] = []
    found: list[Any] = []
    held, most = 0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # put together once
    with closing(iter(rows)) as decoded:
        for array, label in decoded:
            arrays.append(array)
            found.append(label)
            if (held := held + array.nbytes) > most:
                remedy = f"its images take more than the half of this machine's memory after {len(arrays):,}"
                remedy += ": set data.image_size to a smaller one, or data.storage to disk"
                raise UserError("data.source", config.source, remedy)
    labels, names = rows.labels(found)
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    provenance = rows.provenance(images.shape, pixels_sha256(images), labels, names)
    return ImageData(images=images, labels=labels, class_names=names, provenance=provenance)


def _labels(
    found: Sequence[Any], class_names: tuple[str, ...] | None, column: str | None
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels as int64 [N] and their names; none where some are missing, unless the column was asked for."""
    if all(isinstance(label, str) for label in found):
        class_names = tuple(sorted(set(found)))
        index = {name: number for number, name in enumerate(class_names)}
        return torch.tensor([index[label] for label in found]), class_names
    if all(map(is_class, found)):
        return torch.tensor(found, dtype=torch.int64), class_names
    if column is not None:
        row, label = next((row, label) for row, label in enumerate(found) if not is_class(label))
        raise UserError("data.label_column", column, f"row {row} has the label {label!r}: not a class")
    return None, None
