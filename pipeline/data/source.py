"""Opens one split of a data set through `datasets`, and finds its image and label columns.

Local sources are streamed: nothing is copied into a cache. Hub data sets are cached by `datasets` as usual.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import UserError, unreadable
from fewstep.pipeline.config.schema import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

T = TypeVar("T")

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
_SHARD = re.compile(r"(?P<split>\w+?)-\d+-of-\d+")


class Rows:
    """The rows of one split of a hub:, parquet: or imagefolder: source, in order; whatever is wrong is a UserError.

    Each is a name for errors, the image's bytes or file (None: missing), and its label as stored.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        kind, _, place = config.source.partition(":")
        path = Path(place).expanduser()
        self.place = f"{config.source} ({split})"
        with unreadable(config.source, "cannot be read"):
            import datasets  # two seconds of imports that the digits do not need
            from datasets import config as places

            if kind == "hub":
                dataset: Dataset | IterableDataset = _open_hub(config, place, split)
                self.folders = [places.HF_CACHE_HOME, places.HF_DATASETS_CACHE]
            else:
                dataset = _open_local(config, kind, path, split)
                self.folders = [path] if kind == "imagefolder" else []
            features: Mapping[Any, Any] = dataset.features or {}
            self.image_column = _image_column(config, features)
            self.label_column = _label_column(config, features, self.image_column)
            labels = features.get(self.label_column)
            self.class_names = tuple(labels.names) if isinstance(labels, datasets.ClassLabel) else None
            self.dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))

    def __iter__(self) -> Iterator[tuple[str, bytes | Path | None, Any]]:
        stream = iter(self.dataset)
        for index in count():
            where = f"{self.place}, row {index}"
            with unreadable(where, "cannot be read"):
                row: Any = next(stream, None)
            if row is None:
                return
            image = row[self.image_column] or {"bytes": None, "path": None}
            encoded, path = image["bytes"], image["path"]
            if encoded is None and path is not None:
                encoded, where = self._inside(where, path), path
            yield where, encoded, row.get(self.label_column)

    def _inside(self, where: str, path: str) -> Path:
        """The file that a row names: of the image folder, or of the hub's cache; a parquet file names none."""
        found = Path(os.path.abspath(path))
        if not any(found.is_relative_to(os.path.abspath(folder)) for folder in self.folders):
            raise UserError(where, path, "names a file outside the data set, which is not read: put the image into it")
        return found


def _open_hub(config: DataConfig, name: str, split: str) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        remedy = "is no id of a data set on the hub, or the name of a file or folder here; local data are parquet:PATH"
        raise UserError("data.source", config.source, f"{remedy} or imagefolder:PATH")
    try:
        found = load_dataset(name, config.config_name, revision=config.revision)
    except DatasetNotFoundError:
        at = f" at revision {config.revision}" if config.revision else ""
        raise UserError("data.source", config.source, f"no such public data set on the hub{at}") from None
    except ConnectionError:
        remedy = "the hub cannot be reached and nothing is cached: use parquet:PATH or imagefolder:PATH,"
        raise UserError("data.source", config.source, f"{remedy} or set HF_ENDPOINT to a mirror") from None
    return _pick(config, found, split)


def _open_local(config: DataConfig, kind: str, path: Path, split: str) -> "IterableDataset":
    from datasets import load_dataset
    from datasets.data_files import EmptyDatasetError

    if not path.exists() or (kind == "imagefolder" and not path.is_dir()):
        fault = "is not a folder" if path.exists() else "no such file or folder"
        raise UserError("data.source", config.source, fault)
    with TemporaryDirectory() as cache:  # `datasets` wants a cache folder for streams too: an empty one, gone at once
        if kind == "imagefolder":
            try:
                found = load_dataset(kind, data_dir=str(path), streaming=True, cache_dir=cache)
            except EmptyDatasetError:
                raise UserError("data.source", config.source, "the folder holds no images") from None
            return _pick(config, found, split)
        shards: dict[str, list[str]] = {}
        for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
            if not file.is_file():
                raise UserError(file, None, "is no regular file, or a link to nothing: remove it")
            shards.setdefault(_split_of(file), []).append(str(file))
        if not shards:
            raise UserError("data.source", config.source, "the folder holds no .parquet files")
        files = {split: _pick(config, shards, split)}
        return load_dataset(kind, data_files=files, streaming=True, cache_dir=cache)[split]


def _split_of(file: Path) -> str:
    """A parquet file's split by its name (train-00000-of-00001, test) or its folder's; otherwise train."""
    if shard := _SHARD.fullmatch(file.stem):
        return shard["split"]
    return next((name for name in (file.stem, file.parent.name) if name in _SPLITS), "train")


def _pick(config: DataConfig, splits: Mapping[Any, T], split: str) -> T:
    """One split; the error for a missing one names the key that asked for it, and the splits there are."""
    if split not in splits:
        key = next(key for key in ("split", "reference_split", "choice_split") if getattr(config, key) == split)
        raise UserError(f"data.{key}", split, f"{config.source} has no such split, but {', '.join(map(str, splits))}")
    return splits[split]


def _image_column(config: DataConfig, features: Mapping[str, Any]) -> str:
    import datasets

    listed = f"its columns: {', '.join(features)}"
    if config.image_column is not None:
        if config.image_column not in features:
            raise UserError("data.image_column", config.image_column, f"{config.source} has no such column; {listed}")
        feature = features[config.image_column]
        if not isinstance(feature, datasets.Image) and not _holds_bytes(feature):
            raise UserError("data.image_column", config.image_column, f"holds {feature}, not images; {listed}")
        return config.image_column
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    found = found or [name for name in _IMAGE_NAMES if _holds_bytes(features.get(name))][:1]
    if not found:
        raise UserError("data.source", config.source, f"has no image column; {listed}")
    if len(found) > 1:
        remedy = f"{config.source} has several image columns: set it to one of {', '.join(found)}"
        raise UserError("data.image_column", None, remedy)
    return found[0]


def _holds_bytes(feature: object) -> bool:
    """Whether a column without the image type can hold encoded images: binary, or a struct with bytes."""
    inner = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def _label_column(config: DataConfig, features: Mapping[str, Any], image_column: str) -> str | None:
    import datasets

    if config.label_column is not None:
        if config.label_column not in features or config.label_column == image_column:
            others = ", ".join(name for name in features if name != image_column) or "none"
            remedy = f"{config.source} has no such label column; its other columns: {others}"
            raise UserError("data.label_column", config.label_column, remedy)
        return config.label_column
    named = [name for name in _LABEL_NAMES if hasattr(features.get(name), "dtype")]
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return next(iter(named), typed[0] if len(typed) == 1 else None)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the log lines and progress bars of `datasets` and the hub off the terminal."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before, bars = logging.root.manager.disable, not are_progress_bars_disabled()
    logging.disable()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            enable_progress_bars()
