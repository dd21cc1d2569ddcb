"""Opens one split of a data set, wherever it lies, and finds its image and label columns."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import UserError, unreadable
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.tables import Column, FolderTables, ParquetTables, Tables, parts

if TYPE_CHECKING:
    from pyarrow import Table

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")


def open_tables(config: DataConfig, split: str, *, streamed: bool = False, revision: str | None = None) -> Tables:
    """Open one split of a hub:, parquet: or imagefolder: source. UserError: it is not there or cannot be read.

    streamed: do not download a data set of the hub but stream it, from the commit `revision`.
    """
    kind, place, path = parts(config)
    with unreadable(config.source, "cannot be read"):
        if kind == "parquet":
            return ParquetTables(config, path, split)
        if kind == "imagefolder":
            return FolderTables(config, path, split)
        from fewstep.pipeline.data.hub import HubTables

        return HubTables(config, place, split, streamed=streamed, revision=revision)


class Rows:
    """The rows of one split, in order; whatever is wrong is a UserError.

    Each is a name for errors, the image's bytes or file (None: missing), and its label as stored.
    """

    def __init__(self, config: DataConfig, split: str, *, streamed: bool = False, revision: str | None = None) -> None:
        self.place = f"{config.source} ({split})"
        self.source = open_tables(config, split, streamed=streamed, revision=revision)
        columns = self.source.columns
        self.image_column = _image_column(config, columns)
        self.label_column = _label_column(config, columns, self.image_column)
        self.label = None if self.label_column is None else columns[self.label_column]
        self.class_names = None if self.label is None else self.label.classes

    def __iter__(self) -> Iterator[tuple[str, bytes | Path | None, Any]]:
        index = 0
        for part in range(self.source.parts):
            for table in self.tables(part):
                for image, label in rows_of(table):
                    yield *self.encoded(index, image), label
                    index += 1

    def encoded(self, index: int, image: dict[str, Any] | bytes | None) -> tuple[str, bytes | Path | None]:
        """Return a name for errors and the encoded image of row `index`, as a table has it."""
        where = f"{self.place}, row {index}"
        if not isinstance(image, dict):
            return where, image
        if image.get("bytes") is None and image.get("path") is not None:
            return image["path"], self._inside(where, image["path"])
        return where, image.get("bytes")

    def tables(self, part: int, skip: int = 0) -> "Iterator[Table]":
        """Yield the rows of one part of the source, from row `skip` on, as tables of an image and a label."""
        index = skip
        columns = [self.image_column, *([self.label_column] if self.label_column else [])]
        stream = self.source.tables(columns, part, skip)
        while True:
            with unreadable(f"{self.source.name(part) or self.place}, row {index}", "cannot be read"):
                table: Any = next(stream, None)
            if table is None:
                return
            index += len(table)
            yield table

    def _inside(self, where: str, path: str) -> Path:
        """Return the file that a row names, in the image folder or the hub's cache; a parquet file may name none."""
        found = Path(os.path.abspath(path))
        if not any(found.is_relative_to(os.path.abspath(folder)) for folder in self.source.folders):
            raise UserError(where, path, "names a file outside the data set, which is not read: put the image into it")
        return found


def rows_of(table: "Table") -> Iterator[tuple[dict[str, Any] | bytes | None, Any]]:
    """Yield the image of each row, as bytes or {"bytes", "path"}, and its label (None if there is no such column)."""
    columns = [column.to_pylist() for column in table.columns]
    return zip(columns[0], columns[1] if len(columns) > 1 else repeat(None, len(table)), strict=True)


def _image_column(config: DataConfig, columns: Mapping[str, Column]) -> str:
    listed = f"its columns: {', '.join(columns)}"
    if config.image_column is not None:
        if config.image_column not in columns:
            raise UserError("data.image_column", config.image_column, f"{config.source} has no such column; {listed}")
        column = columns[config.image_column]
        if not column.is_image and not column.holds_bytes:
            raise UserError("data.image_column", config.image_column, f"holds {column.kind}, not images; {listed}")
        return config.image_column
    found = [name for name, column in columns.items() if column.is_image]
    found = found or [name for name in _IMAGE_NAMES if name in columns and columns[name].holds_bytes][:1]
    if not found:
        raise UserError("data.source", config.source, f"has no image column; {listed}")
    if len(found) > 1:
        remedy = f"{config.source} has several image columns: set it to one of {', '.join(found)}"
        raise UserError("data.image_column", None, remedy)
    return found[0]


def _label_column(config: DataConfig, columns: Mapping[str, Column], image_column: str) -> str | None:
    if config.label_column is not None:
        if config.label_column not in columns or config.label_column == image_column:
            others = ", ".join(name for name in columns if name != image_column) or "none"
            remedy = f"{config.source} has no such label column; its other columns: {others}"
            raise UserError("data.label_column", config.label_column, remedy)
        return config.label_column
    named = [name for name in _LABEL_NAMES if name in columns and columns[name].is_plain]
    typed = [name for name, column in columns.items() if column.classes is not None]
    return next(iter(named), typed[0] if len(typed) == 1 else None)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the log lines and progress bars of `datasets` and the hub, where they are loaded, off the terminal."""
    before = logging.root.manager.disable
    logging.disable()
    library: Any = sys.modules.get("datasets")
    bars = library if library and not library.are_progress_bars_disabled() else None
    if bars:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            bars.enable_progress_bars()
