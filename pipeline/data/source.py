"""Opens one split of a data set through `datasets`, and finds its image and label columns.

Local sources are streamed: nothing is copied into a cache. Hub data sets are cached by `datasets` as usual, unless
they are to be streamed too.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import UserError, unreadable
from fewstep.pipeline.config.schema import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from pyarrow import Table

T = TypeVar("T")

TABLE = 100  # rows read at once: few, as they may be photographs
_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?", re.ASCII)
OFFLINE = (
    "the hub cannot be reached and nothing is cached: use parquet:PATH or imagefolder:PATH, or set HF_ENDPOINT to a "
    "mirror"
)
_SHARD = re.compile(r"(?P<split>\w+?)-\d+-of-\d+")


class Rows:
    """The rows of one split of a hub:, parquet: or imagefolder: source, in order; whatever is wrong is a UserError.

    Each is a name for errors, the image's bytes or file (None: missing), and its label as stored. `streamed`: one of
    the hub is streamed as well, from the commit `revision`.
    """

    def __init__(self, config: DataConfig, split: str, *, streamed: bool = False, revision: str | None = None) -> None:
        kind, place, path = parts(config)
        self.place = f"{config.source} ({split})"
        with unreadable(config.source, "cannot be read"):
            self.files = parquet_files(config, path, split) if kind == "parquet" else []
            import datasets  # two seconds of imports that the digits do not need
            from datasets import config as places

            if kind == "hub":
                dataset: Dataset | IterableDataset = _open_hub(config, place, split, streamed, revision)
                self.folders = [places.HF_CACHE_HOME, places.HF_DATASETS_CACHE]
            else:
                dataset = _open_local(config, path, split, self.files)
                self.folders = [path] if kind == "imagefolder" else []
            features: Mapping[Any, Any] = dataset.features or {}
            self.image_column = _image_column(config, features)
            self.label_column = _label_column(config, features, self.image_column)
            self.label_type = labels = features.get(self.label_column)
            self.class_names = tuple(labels.names) if isinstance(labels, datasets.ClassLabel) else None
            splits: Mapping[Any, Any] = dataset.info.splits or {}
            self.declared: int | None = splits[split].num_examples if split in splits else None
            self.dataset = dataset.cast_column(self.image_column, datasets.Image(decode=False))

    def __iter__(self) -> Iterator[tuple[str, bytes | Path | None, Any]]:
        for index, (image, label) in enumerate(chain.from_iterable(map(rows_of, self.tables()))):
            yield *self.encoded(index, image), label

    def encoded(self, index: int, image: dict[str, Any] | None) -> tuple[str, bytes | Path | None]:
        """A name for errors and the encoded image of row `index`, as a table has it."""
        where, image = f"{self.place}, row {index}", image or {"bytes": None, "path": None}
        if image["bytes"] is None and image["path"] is not None:
            return image["path"], self._inside(where, image["path"])
        return where, image["bytes"]

    def tables(self, file: int | None = None) -> "Iterator[Table]":
        """The rows as tables of an image and a label, of one parquet file (by its place in `files`) or of all."""
        dataset, index = self.dataset, 0
        if file is not None and len(self.files) > 1:
            dataset = dataset.shard(num_shards=len(self.files), index=file)
        columns = [self.image_column, *([self.label_column] if self.label_column else [])]
        stream = iter(dataset.with_format("arrow").iter(batch_size=TABLE))
        while True:
            where = self.place if file is None else self.files[file]
            with unreadable(f"{where}, row {index}", "cannot be read"):
                table: Any = next(stream, None)
            if table is None:
                return
            index += len(table)
            yield table.select(columns)

    def _inside(self, where: str, path: str) -> Path:
        """The file that a row names: of the image folder, or of the hub's cache; a parquet file names none."""
        found = Path(os.path.abspath(path))
        if not any(found.is_relative_to(os.path.abspath(folder)) for folder in self.folders):
            raise UserError(where, path, "names a file outside the data set, which is not read: put the image into it")
        return found


def rows_of(table: "Table") -> Iterator[tuple[dict[str, Any] | None, Any]]:
    """The images, {"bytes", "path"}, and labels (None where there is no such column) of a table."""
    columns = [column.to_pylist() for column in table.columns]
    return zip(columns[0], columns[1] if len(columns) > 1 else repeat(None, len(table)), strict=True)


def parts(config: DataConfig) -> tuple[str, str, Path]:
    """The kind of a source, what stands behind the colon, and that as a path."""
    kind, _, place = config.source.partition(":")
    return kind, place, Path(place).expanduser()


def _open_hub(
    config: DataConfig, name: str, split: str, streamed: bool, revision: str | None
) -> "Dataset | IterableDataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    check_hub_id(config, name)
    try:
        options: Any = {"revision": revision or config.revision} | ({"streaming": True} if streamed else {})
        found: Any = load_dataset(name, config.config_name, **options)
    except DatasetNotFoundError:
        at = f" at revision {config.revision}" if config.revision else ""
        raise UserError("data.source", config.source, f"no such public data set on the hub{at}") from None
    except ConnectionError:
        raise UserError("data.source", config.source, OFFLINE) from None
    return _pick(config, found, split)


def check_hub_id(config: DataConfig, name: str) -> None:
    """UserError for what is no id of a data set on the hub."""
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        remedy = "is no id of a data set on the hub, or the name of a file or folder here; local data are parquet:PATH"
        raise UserError("data.source", config.source, f"{remedy} or imagefolder:PATH")


def _open_local(config: DataConfig, path: Path, split: str, files: Sequence[str]) -> "IterableDataset":
    """`files`: those of a parquet source; of an image folder there are none."""
    from datasets import load_dataset
    from datasets.data_files import EmptyDatasetError

    with TemporaryDirectory() as cache:  # `datasets` wants a cache folder for streams too: an empty one, gone at once
        if not files:
            check_there(config, path)
            try:
                found = load_dataset("imagefolder", data_dir=str(path), streaming=True, cache_dir=cache)
            except EmptyDatasetError:
                raise UserError("data.source", config.source, "the folder holds no images") from None
            return _pick(config, found, split)
        given: Any = {"data_files": {split: list(files)}, "batch_size": 10 * TABLE}  # not a whole row group at once
        return load_dataset("parquet", streaming=True, cache_dir=cache, **given)[split]


def check_there(config: DataConfig, path: Path) -> None:
    """UserError where a local source is not there, or an image folder is none."""
    if not path.exists() or (config.source.startswith("imagefolder:") and not path.is_dir()):
        fault = "is not a folder" if path.exists() else "no such file or folder"
        raise UserError("data.source", config.source, fault)


def parquet_files(config: DataConfig, path: Path, split: str) -> list[str]:
    """The parquet files of a split, in order: UserError where there are none."""
    check_there(config, path)
    shards: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        if not file.is_file():
            raise UserError(file, None, "is no regular file, or a link to nothing: remove it")
        shards.setdefault(_split_of(file), []).append(str(file))
    if not shards:
        raise UserError("data.source", config.source, "the folder holds no .parquet files")
    return _pick(config, shards, split)


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
