"""The training images of a run, as `data.storage` keeps them."""

from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.stored import StoredData, in_memory, on_disk
from fewstep.pipeline.data.stream import StreamedData

TrainingData = StoredData | StreamedData
"""Images of one shape, uint8 [C, H, W] each, their labels where they have some, and their provenance."""


def open_training(config: DataConfig, folder: Path, kept: dict[str, Any] | None, *, checked: bool) -> TrainingData:
    """The images of `config.split`. An array on the disk is kept in `folder`.

    kept: the provenance that a run has of them. checked: whether the bytes of an array are read through. UserError:
    whatever is wrong; the images are not those that the run began with.
    """
    if config.storage == "stream":
        data = StreamedData(config)
        if kept is None or kept.get("fingerprint") == data.fingerprint or not checked:
            return data
    else:
        data = in_memory(config) if config.storage == "memory" else on_disk(config, folder, checked=checked)
    if kept is not None and kept.get("sha256") != data.provenance["sha256"]:
        remedy = "the images have changed since this run began: put them back, or give another name (--name)"
        raise UserError("data.source", config.source, remedy)
    return data
