"""Opens one split of a data set through `datasets`, and finds its image and label columns.

Local sources are streamed: nothing is copied into a cache. Hub data sets are cached by `datasets` as usual.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import UserError
from fewstep.pipeline.config.schema import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset, IterableDatasetDict

T = TypeVar("T")

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
_SHARD = re.compile(r"(?P<split>\w+?)-\d+-of-\d+")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image as stored: a name for errors, its file or bytes (None: missing), and its label as stored."""

    name: str
    encoded: bytes | Path | None
    label: Any


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one split, in order."""

    dataset: "Dataset | IterableDataset"
    place: str
    folders: tuple[Path, ...]
    image_column: str
    label_column: str | None
    class_names: tuple[str, ...] | None

    def __iter__(self) -> Iterator[Row]:
        stream = iter(self.dataset)
        index = 0
        while True:
            with _library_errors(f"{self.place}, row {index}"):
                row = next(stream, None)
            if row is None:
                return
            image = row[self.image_column] or {"bytes": None, "path": None}
            path = image["path"]
            where = f"{self.place}, row {index}"
            if image["bytes"] is not None:
                encoded = image["bytes"]
            else:
                encoded = None if path is None else self._inside(where, path)
                where = path or where
            label = None if self.label_column is None else row[self.label_column]
            yield Row(name=where, encoded=encoded, label=label)
            index += 1

    def _inside(self, where: str, path: str) -> Path:
        """The file that a row names: of the image folder, or of the hub's cache; a parquet file names none."""
        found = Path(os.path.abspath(path))
        if not any(found.is_relative_to(os.path.abspath(folder)) for folder in self.folders):
            raise UserError(where, path, "names a file outside the data set, which is not read: put the image into it")
        return found


def open_split(config: DataConfig, split: str) -> Rows:
    """Open a split of a hub:, parquet: or imagefolder: source."""
    kind, _, place = config.source.partition(":")
    with _library_errors(config.source):
        import datasets  # two seconds of imports that the digits do not need
        from datasets import config as config_of_datasets

        folders: tuple[Path, ...] = ()
        if kind == "hub":
            dataset = _open_hub(config, place, split)
            folders = (Path(config_of_datasets.HF_CACHE_HOME), Path(config_of_datasets.HF_DATASETS_CACHE))
        else:
            path = Path(place).expanduser()
            if not path.exists():
                raise UserError("data.source", config.source, "no such file or folder")
            folders = (path,) if kind == "imagefolder" else ()
            dataset = (_open_parquet if kind == "parquet" else _open_folder)(config, path, split)
        features = dataset.features or {}
        image_column = _image_column(config, features)
        label_column = _label_column(config, features, image_column)
        class_names = None
        if label_column is not None and isinstance(features[label_column], datasets.ClassLabel):
            class_names = tuple(features[label_column].names)
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    return Rows(
        dataset=dataset,
        place=f"{config.source} ({split})",
        folders=folders,
        image_column=image_column,
        label_column=label_column,
        class_names=class_names,
    )


def _open_hub(config: DataConfig, name: str, split: str) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        remedy = "is no id of a data set on the hub, or the name of a file or folder here; local data are parquet:PATH"
        raise UserError("data.source", config.source, f"{remedy} or imagefolder:PATH")
    try:
        found = load_dataset(name)
    except DatasetNotFoundError:
        raise UserError("data.source", config.source, "no such public data set on the hub") from None
    except ConnectionError:
        remedy = "the hub cannot be reached and nothing is cached: use parquet:PATH or imagefolder:PATH,"
        remedy += " or set HF_ENDPOINT to a mirror"
        raise UserError("data.source", config.source, remedy) from None
    return _pick(config, found, split)


def _open_parquet(config: DataConfig, path: Path, split: str) -> "IterableDataset":
    shards: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        if not file.is_file():
            raise UserError(file, None, "is no regular file, or a link to nothing: remove it")
        shards.setdefault(_split_of(file), []).append(str(file))
    if not shards:
        raise UserError("data.source", config.source, "the folder holds no .parquet files")
    return _stream("parquet", data_files={split: _pick(config, shards, split)})[split]


def _split_of(file: Path) -> str:
    """A parquet file's split by its name (train-00000-of-00001, test) or its folder's; otherwise train."""
    shard = _SHARD.fullmatch(file.stem)
    if shard is not None:
        return shard["split"]
    return next((name for name in (file.stem, file.parent.name) if name in _SPLITS), "train")


def _open_folder(config: DataConfig, path: Path, split: str) -> "IterableDataset":
    from datasets.data_files import EmptyDatasetError

    if not path.is_dir():
        raise UserError("data.source", config.source, "is not a folder")
    try:
        found = _stream("imagefolder", data_dir=str(path))
    except EmptyDatasetError:
        raise UserError("data.source", config.source, "the folder holds no images") from None
    return _pick(config, found, split)


def _stream(kind: str, **place: Any) -> "IterableDatasetDict":  # noqa: ANN401 - arguments of load_dataset
    """Local files as streams. `datasets` wants a cache folder even so: an empty one, gone at once."""
    from datasets import load_dataset

    with TemporaryDirectory() as cache:
        return load_dataset(kind, **place, streaming=True, cache_dir=cache)


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
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    stored = [name for name in _IMAGE_NAMES if name in features and _holds_bytes(features[name])]
    found = typed or stored[:1]
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
    named = [name for name in _LABEL_NAMES if name in features and hasattr(features[name], "dtype")]
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return next(iter(named), typed[0] if len(typed) == 1 else None)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the log lines and progress bars of `datasets` and the hub off the terminal."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "fsspec")]
    levels = [logger.level for logger in loggers]
    bars = not are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            enable_progress_bars()


@contextmanager
def _library_errors(where: str) -> Iterator[None]:
    """Turn whatever `datasets` raises over a user's data into one line."""
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as error:
        text = str(error).splitlines() or [type(error).__name__]
        raise UserError(where, None, f"cannot be read ({type(error).__name__}: {text[0]})") from error
