"""Real images that choices are made on, and those that quality is measured against: no image is both.

Choices (noise levels) are made on at most 2,000 images of `data.choice_split`. Without one, a fifth of the training
images is set aside for them, at most 2,000; they are trained on all the same. Of a stream it is a fifth of its first
window.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.images import Picked, indexed
from fewstep.eval.interfaces import IndexedImages
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.decode import Decoder, pillow_warnings
from fewstep.pipeline.data.load import ImageData, load_data
from fewstep.pipeline.data.source import Rows, open_tables, quiet_libraries
from fewstep.pipeline.data.stream import StreamedData

MOST, SHARE, SEED = 2000, 5, 97  # the seed is of this permutation alone, whatever the run's seed is


def choice_images(config: DataConfig, training: Tensor | IndexedImages) -> Tensor:
    """Images that choices are made on, uint8 [M, C, H, W]; `training` holds those of `config.split`.

    UserError: they are fewer than four.
    """
    if config.choice_split is None:
        images = indexed(training).take(_set_aside(training))
    else:
        split = config.choice_split
        source = indexed(training if split == config.split else load_data(config, split).images)
        images = source.take(_order(len(source))[:MOST])
    _check_choices(len(images))
    return images


def check_splits(config: DataConfig, facts: dict[str, Any], *, choices: bool, references: bool) -> None:
    """Raise UserError where real images to choose on, or to measure against, are missing, too few or of another size.

    facts: the provenance of the training images. A split that is named has to be there, whether it is read or not.
    """
    for split in (config.choice_split, config.reference_split):
        if split not in (None, config.split):
            _check_first(config, split, facts["shape"])
    if choices:
        _check_choices(choice_count(config, facts["count"]))
    if references and (count := reference_count(config, facts["count"])) < 4:
        raise UserError("data.reference_split", count, "images are too few to measure against; give 4 or more")


def choice_count(config: DataConfig, training: int) -> int:
    """Return how many images choices are made on, where there are `training` ones to train on."""
    if config.choice_split not in (None, config.split):
        return min(_count(config, config.choice_split), MOST)
    return _aside(config, training) if config.choice_split is None else min(training, MOST)


def reference_count(config: DataConfig, training: int) -> int:
    """Return how many images quality is measured against, where there are `training` ones to train on."""
    if config.reference_split not in (None, config.split):
        return _count(config, config.reference_split)
    return training - (_aside(config, training) if config.choice_split is None else 0)


def _check_choices(count: int) -> None:
    if count < 4:
        remedy = f"real images are too few to choose noise levels on; give 4 or more, or {4 * SHARE} to train on"
        raise UserError("data.choice_split", count, remedy)


def _check_first(config: DataConfig, split: str, shape: Sequence[int]) -> None:
    """Raise UserError unless the first image of a split has the (C, H, W) of the training images."""
    with pillow_warnings(), quiet_libraries():
        first = next(iter(Rows(config, split)), None)
        if first is None:
            raise UserError("data.source", config.source, f"split {split!r} holds no images")
        decoder = Decoder(image_size=config.image_size, channels=config.channels)
        height, width, channels = decoder.decode(*first[:2]).shape
        if [channels, height, width] != [*shape]:
            made, needed = f"{width}x{height} with {channels} channels", f"{shape[2]}x{shape[1]} with {shape[0]}"
            remedy = f"images of split {split!r} are {made} and those to train on {needed}: set data.image_size"
            raise UserError("data.source", config.source, remedy)


def _count(config: DataConfig, split: str) -> int:
    """Return the number of images of a split; where it is not known, as many as anything here needs."""
    with quiet_libraries():
        return sum(MOST if count is None else count for count in open_tables(config, split).counts)


def reference_images(config: DataConfig, training: Tensor | IndexedImages) -> tuple[Tensor | IndexedImages, str]:
    """Images that quality is measured against, uint8 [M, C, H, W], and what they are called in their provenance."""
    images, _, name = labelled_reference(config, training, None, None)
    return images, name


def labelled_reference(
    config: DataConfig, training: Tensor | IndexedImages, labels: Tensor | None, names: Sequence[str] | None
) -> tuple[Tensor | IndexedImages, Tensor | None, str]:
    """`reference_images` with their labels [M] between the two, None where there are none.

    labels, names: of `training`, by whose names the labels of another split are numbered too.
    """
    split = config.reference_split or config.split
    if split != config.split:
        data = load_data(config, split)
        return data.images, _renumbered(data, names), split
    if config.choice_split is not None:
        return training, labels, split
    kept = torch.ones(len(training), dtype=torch.bool)
    kept[_set_aside(training)] = False
    name = f"{split}, without the {int((~kept).sum()):,} images that choices are made on"
    images = training[kept] if isinstance(training, Tensor) else Picked(training, kept.nonzero().squeeze(1))
    return images, None if labels is None else labels[kept], name


def _renumbered(data: ImageData, names: Sequence[str] | None) -> Tensor | None:
    """Labels [M] of a split as `names` number the classes; None: it has none, or classes that these do not name."""
    if data.labels is None or data.class_names is None or names is None:
        return data.labels
    numbers = {name: number for number, name in enumerate(names)}
    if not {*data.class_names} <= {*numbers}:
        return None
    return torch.tensor([numbers[name] for name in data.class_names])[data.labels]


def _set_aside(training: Tensor | IndexedImages) -> Tensor:
    count = len(training)
    if isinstance(training, StreamedData):
        count = min(count, training.config.window)
    return _order(count)[: min(count // SHARE, MOST)]


def _aside(config: DataConfig, count: int) -> int:
    """Return how many of `count` training images are set aside."""
    return min((min(count, config.window) if config.storage == "stream" else count) // SHARE, MOST)


def _order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
