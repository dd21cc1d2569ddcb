"""Images and labels from any source, as one uint8 tensor with its provenance.

Every source is a stream of encoded images; resize, crop and colour conversion happen in `data_images`, in one
place, and are recorded. Value range: uint8, [0, 255].
"""

import os
from collections.abc import Sequence
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
from fewstep.pipeline.data.source import open_split, quiet_libraries

_CLASSES = range(2**31)


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


def load_data(config: DataConfig, split: str) -> ImageData:
    """Read one split (`config.split` or `config.reference_split`). UserError for whatever is wrong."""
    if config.source == "digits":
        return _digits(config, split)
    with quiet_libraries():
        rows = open_split(config, split)
    decoder = Decoder(image_size=config.image_size, channels=config.channels)
    arrays: list[np.ndarray] = []
    labels: list[Any] = []
    held, most = 0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # bytes; they are put together once
    with pillow_warnings(), quiet_libraries():
        for row in rows:
            arrays.append(decoder.decode(row.name, row.encoded))
            labels.append(row.label)
            if (held := held + arrays[-1].nbytes) > most:
                remedy = f"its images take more than the half of this machine's memory after {len(arrays):,}"
                raise UserError("data.source", config.source, f"{remedy}: set data.image_size to a smaller one")
    if not arrays:
        raise UserError("data.source", config.source, f"split {split!r} holds no images")
    values, names = _labels(labels, rows.class_names, config.label_column)
    columns = {"image": rows.image_column, "label": rows.label_column if values is not None else None}
    return _collect(config, split, arrays, values, names, columns, decoder.transforms())


def _digits(config: DataConfig, split: str) -> ImageData:
    """scikit-learn's 1,797 handwritten digits (UCI optical recognition, test part): 8x8, values 0 to 16."""
    if split != "train":
        raise UserError("data.split", split, "the digits have one split, train")
    from sklearn.datasets import load_digits  # a second of imports that other sources do not need

    bunch: Any = load_digits()
    pixels = np.round(bunch["images"] * (255 / 16)).astype(np.uint8)
    decoder = Decoder(image_size=config.image_size, channels=config.channels)
    arrays = [decoder.fit(f"digit {index}", Image.fromarray(digit)) for index, digit in enumerate(pixels)]
    labels = torch.from_numpy(bunch["target"].astype(np.int64))
    names = tuple(str(name) for name in bunch["target_names"])
    transforms = ["value = round(v * 255 / 16)", *decoder.transforms()]
    return _collect(config, split, arrays, labels, names, {"image": "images", "label": "target"}, transforms)


def _collect(
    config: DataConfig,
    split: str,
    arrays: Sequence[np.ndarray],
    labels: Tensor | None,
    class_names: tuple[str, ...] | None,
    columns: dict[str, str | None],
    transforms: Sequence[str],
) -> ImageData:
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    provenance = {
        "source": config.source,
        "split": split,
        "columns": columns,
        "count": len(images),
        "shape": list(images.shape[1:]),
        "classes": None if class_names is None else list(class_names),
        "transforms": list(transforms),
        "sha256": pixels_sha256(images),
    }
    return ImageData(images=images, labels=labels, class_names=class_names, provenance=provenance)


def _labels(
    found: Sequence[Any], class_names: tuple[str, ...] | None, column: str | None
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels as int64 [N] and their names; none where some are missing, unless the column was asked for."""
    if all(isinstance(label, str) for label in found):
        class_names = tuple(sorted(set(found)))
        index = {name: number for number, name in enumerate(class_names)}
        return torch.tensor([index[label] for label in found]), class_names
    if all(isinstance(label, int) and label in _CLASSES for label in found):
        return torch.tensor(found, dtype=torch.int64), class_names
    if column is not None:
        row, label = next((row, label) for row, label in enumerate(found) if label not in _CLASSES)
        raise UserError("data.label_column", column, f"row {row} has the label {label!r}: not a class")
    return None, None
