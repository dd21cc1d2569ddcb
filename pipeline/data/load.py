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
from fewstep.pipeline.data.source import Rows, quiet_libraries

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
    decoder = Decoder(image_size=config.image_size, channels=config.channels)
    arrays: list[np.ndarray] = []
    found: list[Any] = []
    transforms: list[str] = []
    if config.source == "digits":  # 1,797 handwritten ones (UCI optical recognition, test part): 8x8, values 0 to 16
        from sklearn.datasets import load_digits  # a second of imports that other sources do not need

        bunch: Any = load_digits()
        pixels = np.round(bunch["images"] * (255 / 16)).astype(np.uint8)
        transforms = ["value = round(v * 255 / 16)"]
        arrays = [decoder.fit(f"digit {index}", Image.fromarray(digit)) for index, digit in enumerate(pixels)]
        found, names = bunch["target"].tolist(), tuple(map(str, bunch["target_names"]))
        columns: dict[str, str | None] = {"image": "images", "label": "target"}
    else:
        with pillow_warnings(), quiet_libraries():
            rows = Rows(config, split)
            held, most = 0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # put together once
            for name, encoded, label in rows:
                arrays.append(decoder.decode(name, encoded))
                found.append(label)
                if (held := held + arrays[-1].nbytes) > most:
                    remedy = f"its images take more than the half of this machine's memory after {len(arrays):,}"
                    raise UserError("data.source", config.source, f"{remedy}: set data.image_size to a smaller one")
        names, columns = rows.class_names, {"image": rows.image_column, "label": rows.label_column}
    if not arrays:
        raise UserError("data.source", config.source, f"split {split!r} holds no images")
    labels, names = _labels(found, names, config.label_column)
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    provenance = {
        "source": config.source,
        "split": split,
        "columns": columns | ({"label": None} if labels is None else {}),
        "count": len(images),
        "shape": list(images.shape[1:]),
        "classes": None if names is None else list(names),
        "transforms": transforms + decoder.transforms(),
        "sha256": pixels_sha256(images),
    }
    return ImageData(images=images, labels=labels, class_names=names, provenance=provenance)


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
