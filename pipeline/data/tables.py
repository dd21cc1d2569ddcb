"""Data sets on this machine as tables: image folders and parquet files. Nothing is copied, and no path is a pattern."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fewstep.errors import UserError, unreadable
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.folder import CLASS, read_image_folder
from fewstep.pipeline.data.splits import canonical_split, splits_of_files
from fewstep.pipeline.data.walk import walk

if TYPE_CHECKING:
    from pyarrow import Table

T = TypeVar("T")
TABLE = 100  # rows read at once: few, as they may be photographs
IMAGE = "image"
"""The column of an image folder's images."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What is known of a column before it is read.

    kind: its type, for errors. is_image: it has the type of an image. holds_bytes: it has none, and could hold encoded
    images. is_plain: it holds one number or text a row. classes: the names of its numbers, where they have names.
    """

    kind: str
    is_image: bool = False
    holds_bytes: bool = False
    is_plain: bool = True
    classes: tuple[str, ...] | None = None


class Tables(Protocol):
    """One split of a data set.

    columns: by name. parts: how many parts it has, whose order may change from epoch to epoch. splits: the splits there
    are, each with its size in words. left_out: in words, what lies there and is not read. folders: those that the files
    which rows name must lie in. files: those that rows are read from, where they are known.
    """

    columns: Mapping[str, Column]
    parts: int
    splits: Mapping[str, str]
    left_out: Sequence[str]
    folders: Sequence[str | Path]
    files: Sequence[Path]

    @property
    def counts(self) -> list[int | None]:
        """The number of rows of each part; None where it cannot be known without reading them."""
        ...

    def name(self, part: int) -> str | None:
        """Return the file of a part, or None where it is no file."""
        ...

    def tables(self, columns: Sequence[str], part: int, skip: int) -> "Iterator[Table]":
        """Yield the rows of a part from row `skip` on, up to TABLE of them at a time."""
        ...

    def highest(self, column: str) -> int | None:
        """Return the highest number of a column of whole numbers, or None where it is not one that can be read."""
        ...


def parts(config: DataConfig) -> tuple[str, str, Path]:
    """Return the kind of a source, what stands behind the colon, and that as a path."""
    kind, _, place = config.source.partition(":")
    return kind, place, Path(place).expanduser()


def check_there(config: DataConfig, path: Path) -> None:
    """Raise UserError where a local source is not there, or an image folder is no folder."""
    if not path.exists() or (config.source.startswith("imagefolder:") and not path.is_dir()):
        fault = "is not a folder" if path.exists() else "no such file or folder"
        raise UserError("data.source", config.source, fault)


def pick(config: DataConfig, splits: Mapping[Any, T], split: str) -> T:
    """Return one split; the error for a missing one names the key that asked for it, and the splits there are."""
    for name in (split, canonical_split(split)):
        if name in splits:
            return splits[name]
    asked = {canonical_split(split), split}
    key = next(key for key in ("split", "reference_split", "choice_split") if getattr(config, key) in asked)
    raise UserError(f"data.{key}", split, f"{config.source} has no such split, but {', '.join(map(str, splits))}")


class FolderTables:
    """The images of one split of a folder, and the columns that its class folders and metadata files make."""

    parts = 1
    columns: Mapping[str, Column]
    splits: Mapping[str, str]
    left_out: Sequence[str]
    folders: Sequence[str | Path]
    files: Sequence[Path] = ()

    def __init__(self, config: DataConfig, path: Path, split: str) -> None:
        check_there(config, path)
        self.folder, self.folders = path, [path]
        found = read_image_folder(path)
        self.splits = {name: f"{len(images):,}" for name, images in found.splits.items()}
        self.left_out, self._values = found.left_out, found.columns
        self.images = pick(config, found.splits, split)
        label = {CLASS, config.label_column}
        others = {name: _column(values, named=name in label) for name, values in found.columns.items()}
        self.columns = {IMAGE: Column(kind="images", is_image=True)} | others

    @property
    def counts(self) -> list[int | None]:
        """See `Tables`."""
        return [len(self.images)]

    def name(self, part: int) -> None:
        """See `Tables`."""

    def tables(self, columns: Sequence[str], part: int, skip: int) -> "Iterator[Table]":
        """See `Tables`."""
        import pyarrow as pa

        for start in range(skip, len(self.images), TABLE):
            images = self.images[start : start + TABLE]
            made: dict[str, list[Any]] = {IMAGE: [{"bytes": None, "path": str(self.folder / name)} for name in images]}
            made |= {name: self._column(name, images) for name in columns if name != IMAGE}
            yield pa.table({name: made[name] for name in columns})

    def highest(self, column: str) -> int | None:
        """See `Tables`."""
        values = self._column(column, self.images)
        return max((value for value in values if isinstance(value, int)), default=None)

    def _column(self, name: str, images: Sequence[str]) -> list[Any]:
        values, classes = self._values[name], self._numbers.get(name)
        found = [values.get(image) for image in images]
        return found if classes is None else [classes.get(value) for value in found]

    @cached_property
    def _numbers(self) -> dict[str, dict[Any, int]]:
        named = ((name, column.classes) for name, column in self.columns.items())
        return {name: {each: number for number, each in enumerate(classes)} for name, classes in named if classes}


def _column(values: Mapping[str, Any], *, named: bool) -> Column:
    """Describe a column of a folder: text in a column of labels (`named`) is the names of classes."""
    given = [value for value in values.values() if value is not None]
    if all(isinstance(value, int) for value in given):
        return Column(kind="int64")
    if not all(isinstance(value, str) for value in given):
        return Column(kind="values of several types", is_plain=False)
    return Column(kind="string", classes=tuple(sorted({*given})) if named else None)


class ParquetTables:
    """The rows of one split of a parquet file, or of those in a folder."""

    columns: Mapping[str, Column]
    splits: Mapping[str, str]
    left_out: Sequence[str] = ()
    folders: Sequence[str | Path] = ()
    files: Sequence[Path]

    def __init__(self, config: DataConfig, path: Path, split: str) -> None:
        check_there(config, path)
        names = [path.name]
        folder = path.parent
        if not path.is_file():
            walked, folder = walk(path), path
            names = [name for name in walked.files if name.lower().endswith(".parquet")]
            self.left_out = walked.left_out({*names})
        if not names:
            raise UserError("data.source", config.source, "the folder holds no .parquet files")
        splits = splits_of_files(names)
        self.splits = {name: f"{len(files)} file{'s' * (len(files) > 1)}" for name, files in splits.items()}
        self.files = [folder / name for name in pick(config, splits, split)]
        self.parts = len(self.files)
        for file in self.files:
            if not file.is_file():
                raise UserError(file, None, "is no regular file, or a link to nothing: remove it")
        self.columns = self._columns()

    def _columns(self) -> dict[str, Column]:
        import datasets  # two seconds of imports that image folders and the digits do not need
        import pyarrow.parquet as pq

        with unreadable(self.files[0], "cannot be read"):
            features = datasets.Features.from_arrow_schema(pq.read_schema(self.files[0]))
        return columns_of(features)

    @property
    def counts(self) -> list[int | None]:
        """See `Tables`."""
        import pyarrow.parquet as pq

        found = list[int | None]()
        for file in self.files:
            with unreadable(file, "cannot be read"):
                found.append(pq.read_metadata(file).num_rows)
        return found

    def name(self, part: int) -> str:
        """See `Tables`."""
        return str(self.files[part])

    def tables(self, columns: Sequence[str], part: int, skip: int) -> "Iterator[Table]":
        """See `Tables`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.files[part]) as opened:
            missing = [name for name in columns if name not in opened.schema_arrow.names]
            if missing:
                remedy = f"has no column {missing[0]}, which {self.files[0].name} has"
                raise UserError(self.files[part], None, remedy)
            for batch in opened.iter_batches(TABLE, columns=list(columns)):
                if skip < len(batch):
                    yield pa.Table.from_batches([batch.slice(skip)]).select(columns)
                skip = max(skip - len(batch), 0)

    def highest(self, column: str) -> int | None:
        """See `Tables`."""
        if "int" not in self.columns[column].kind:
            return None
        tables = chain.from_iterable(self.tables([column], part, 0) for part in range(self.parts))
        with unreadable(self.files[0].parent, "cannot be read"):
            return max(
                (label for table in tables for label in table[column].to_pylist() if label is not None), default=-1
            )


def columns_of(features: Mapping[str, Any]) -> dict[str, Column]:
    """Describe the features that `datasets` knows of a table."""
    import datasets

    found = {}
    for name, feature in features.items():
        inner = feature.get("bytes") if isinstance(feature, dict) else feature
        dtype = getattr(feature, "dtype", None)
        found[name] = Column(
            kind=str(dtype or feature),
            is_image=isinstance(feature, datasets.Image),
            holds_bytes=getattr(inner, "dtype", None) in ("binary", "large_binary"),
            is_plain=dtype is not None,
            classes=tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None,
        )
    return found
