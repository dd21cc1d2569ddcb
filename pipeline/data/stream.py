"""Training images that stay where they are: rows are passed through in order and shuffled within windows.

Rows are read encoded and dropped with their window; only those of this process's part of a batch are decoded. Of a
source of several parquet files the order of the files changes from epoch to epoch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.files import sha256_json
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.decode import Decoder, pillow_warnings
from fewstep.pipeline.data.feed import Pixels, drained
from fewstep.pipeline.data.fingerprint import content_sha256, fingerprint
from fewstep.pipeline.data.load import is_class
from fewstep.pipeline.data.source import Rows, quiet_libraries, rows_of
from fewstep.pipeline.data.tables import parts
from fewstep.pipeline.training.randomness import FILES, WINDOW, keyed_generator

Row = tuple[dict[str, Any] | bytes | None, Any]
"""An image as a table has it, and its label."""
Encoded = tuple[str, bytes | Path | None, Any]
"""A name for errors, an encoded image or its file, and its label."""
_ON_DISK = "set data.storage to disk"


class StreamedData:
    """The training images of `config.split`, read through in the order of their source.

    UserError: whatever is wrong with the source; how many rows it has cannot be known without reading it.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config, self._commit = config, None
        if parts(config)[0] == "hub":
            from fewstep.pipeline.data.hub import hub_commit

            self._commit = hub_commit(config)
        with quiet_libraries():
            self.rows = Rows(config, config.split, streamed=True, revision=self._commit)
        self.counts = self._counted()
        self.decoder = Decoder(image_size=config.image_size, channels=config.channels)
        first = next(self.read([*range(len(self.counts))], 0))
        with pillow_warnings():
            height, width, channels = self.decoder.decode(*self.rows.encoded(0, first[0])).shape
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return sum(self.counts)

    def _counted(self) -> list[int]:
        """Return the rows of each part of the source, whose places in an epoch change."""
        counts = self.rows.source.counts
        if None in counts:
            remedy = f"the hub does not say how many rows split {self.config.split!r} has: {_ON_DISK}"
            raise UserError("data.source", self.config.source, remedy)
        found = [count or 0 for count in counts]
        if not sum(found):
            raise UserError("data.source", self.config.source, f"split {self.config.split!r} holds no images")
        return found

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of each label, where the source knows them."""
        return self.rows.class_names

    @cached_property
    def num_classes(self) -> int | None:
        """How many classes the labels are of; None: there are no labels. Integers without names are read through.

        UserError: labels that are text, or of the hub and without names.
        """
        column, label = self.rows.label_column, self.rows.label
        if column is None or label is None:
            return None
        if label.classes is not None:
            return len(label.classes)
        if (highest := self.rows.source.highest(column)) is None:
            remedy = (
                f"labels of a stream must be integers or have declared names, and these are {label.kind}: {_ON_DISK}"
            )
            raise UserError("data.label_column", column, remedy)
        return highest + 1

    @property
    def labels_sha256(self) -> str:
        """What the labels are known by: the files that they are in, and their column."""
        return sha256_json([self.provenance["sha256"], self.rows.label_column])

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the source's files, and costs no reading of them."""
        return sha256_json([self._commit, self.config.config_name]) if self._commit else fingerprint(self.config)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """See `ImageData`; sha256 is of the files' names and bytes, or of the commit of a data set on the hub."""
        of = "the commit on the hub" if self._commit else "the names and bytes of the source's files"
        names = self.class_names
        return {
            "source": self.config.source,
            "split": self.config.split,
            "columns": {"image": self.rows.image_column, "label": self.rows.label_column},
            "splits": dict(self.rows.source.splits),
            "left_out": [*self.rows.source.left_out],
            "count": len(self),
            "shape": list(self.shape),
            "classes": None if names is None else list(names),
            "sha256": self.fingerprint if self._commit else content_sha256(self.config),
            "sha256_of": of,
            "fingerprint": self.fingerprint,
        }

    def read(self, files: Sequence[int], start: int) -> Iterator[Row]:
        """The rows from `start` on where the parts of the source are in the order `files`.

        UserError: a part ends before its last row.
        """
        for file in files:
            if start >= self.counts[file]:
                start -= self.counts[file]
                continue
            left = self.counts[file] - start
            for table in self._tables(file, start):
                yield from rows_of(table.slice(0, left))
                left -= min(len(table), left)
            if left > 0:
                where = self.rows.source.name(file) or self.rows.place
                remedy = f"the stream ended early, after {self.counts[file] - left:,} of {self.counts[file]:,} rows"
                raise UserError(where, None, f"{remedy}: was the source changed?")
            start = 0

    def _tables(self, file: int, skipped: int) -> Iterator[Any]:
        tables = self.rows.tables(file, skipped)
        while True:
            with quiet_libraries():  # not while others work
                table = next(tables, None)
            if table is None:
                return
            yield table

    def images(self, start: int, stop: int) -> Tensor:
        """Images start..stop-1, uint8 [N, C, H, W]; those before are read past."""
        return self._drained(range(start, min(stop, len(self))), labelled=False)[0]

    def take(self, indices: Tensor) -> Tensor:
        """The images of `indices` [B], uint8 [B, C, H, W]: all rows up to the last of them are read past."""
        order = indices.argsort()
        images, _ = self._drained(indices[order].tolist(), labelled=False)
        return images[order.argsort()]

    def first(self, num: int) -> tuple[Tensor, Tensor | None]:
        """The first `num` images, uint8 [num, C, H, W], and their labels, int64 [num]; None: there are none."""
        return self._drained(range(min(num, len(self))), labelled=self.rows.label_column is not None)

    def some(self, most: int) -> Tensor:
        """The first images, of `most` numbers together."""
        return self.images(0, max(most // math.prod(self.shape), 1))

    def _drained(self, ascending: Sequence[int], *, labelled: bool) -> tuple[Tensor, Tensor | None]:
        stream, reached = self.read([*range(len(self.counts))], ascending[0]), ascending[0]
        requests = []
        for index in ascending:
            row = next(islice(stream, index - reached, None))
            requests.append([(*self.rows.encoded(index, row[0]), row[1])])
            reached = index + 1
        return drained(requests, DecodeRows(self.decoder, self.shape, self.num_classes if labelled else None))

    def feed(self, seed: int, batch_size: int, *, labelled: bool) -> "StreamFeed":
        """Batches in an order of each epoch, with labels where they are needed."""
        reader = DecodeRows(self.decoder, self.shape, self.num_classes if labelled else None)
        return StreamFeed(self, reader, seed, batch_size)


@dataclass(frozen=True)
class DecodeRows:
    """Decodes rows; with the labels of `classes`, or without labels where that is None."""

    decoder: Decoder
    shape: tuple[int, int, int]
    classes: int | None

    def __call__(self, request: Sequence[Encoded]) -> Pixels:
        images = np.empty((len(request), *self.shape), np.uint8)
        with pillow_warnings():
            for image, (name, encoded, _) in zip(images, request, strict=True):
                image[:] = self.decoder.decode(name, encoded).transpose(2, 0, 1)
        if self.classes is None:
            return images, None
        for name, _, label in request:
            if not is_class(label, self.classes):
                raise UserError(name, None, f"has the label {label!r}: not a class of {self.classes}")
        return images, np.array([label for _, _, label in request], np.int64)


@dataclass(frozen=True)
class StreamFeed:
    """The order of a stream: windows of rows one after the other, the rows of each shuffled."""

    data: StreamedData
    reader: DecodeRows
    seed: int
    batch_size: int

    def files(self, epoch: int) -> list[int]:
        """The parts of the source in the order of an epoch."""
        return torch.randperm(len(self.data.counts), generator=keyed_generator(self.seed, FILES, epoch)).tolist()

    def window(self, epoch: int, number: int) -> Tensor:
        """Which rows of an epoch, counted from its first one, are those of a window, in the window's order [W]."""
        start = number * self.data.config.window
        size = min(self.data.config.window, len(self.data) - start)
        return start + _order(self.seed, epoch, number, size)

    def places(self, step: int, part: slice) -> Iterator[tuple[int, int, Tensor]]:
        """Epoch, number of the window and rows of the epoch, for each window that a part of a batch has a share in."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)[part]
        epochs, within = positions // len(self.data), positions % len(self.data)
        numbers = within // self.data.config.window
        for epoch, number in torch.stack([epochs, numbers]).unique_consecutive(dim=1).T.tolist():
            chosen = within[(epochs == epoch) & (numbers == number)]
            yield epoch, number, self.window(epoch, number)[chosen - number * self.data.config.window]

    def in_source(self, epoch: int, rows: Tensor) -> Tensor:
        """Rows of an epoch as rows of the source, whose files stand in another order."""
        order, counts = self.files(epoch), torch.tensor(self.data.counts)
        ends, before = counts[order].cumsum(0), (counts.cumsum(0) - counts)[order]
        place = torch.searchsorted(ends, rows, right=True)
        return rows - (ends - counts[order])[place] + before[place]

    def indices(self, step: int) -> Tensor:
        """See `Feed`."""
        return torch.cat([self.in_source(epoch, rows) for epoch, _, rows in self.places(step, slice(None))])

    def requests(self, start: int, stop: int, part: slice) -> Iterator[list[Encoded]]:
        """See `Feed`. One window is held at a time, encoded; where a step begins is gone to without decoding."""
        data, size = self.data, self.data.config.window
        held, coming = (-1, -1), (-1, 0)  # epoch and number of a window
        stream: Iterator[Row] = iter(())
        window: list[Row] = []
        for step in range(start, stop):
            request = []
            for epoch, number, rows in self.places(step, part):
                if held != (epoch, number):
                    window = []  # before the next one is read
                    if coming[0] != epoch or coming[1] > number:
                        stream, coming = data.read(self.files(epoch), number * size), (epoch, number)
                    skipped = (number - coming[1]) * size  # windows that are other processes' alone
                    window = [*islice(stream, skipped, skipped + size)]
                    held, coming = (epoch, number), (epoch, number + 1)
                for place, index in zip(rows.tolist(), self.in_source(epoch, rows).tolist(), strict=True):
                    image, label = window[place - number * size]
                    request.append((*data.rows.encoded(index, image), label))
            yield request


@lru_cache(maxsize=4)  # windows that a batch may touch: to be read only
def _order(seed: int, epoch: int, number: int, size: int) -> Tensor:
    return torch.randperm(size, generator=keyed_generator(seed, WINDOW, epoch, number))
