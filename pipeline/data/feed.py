"""Training images on their way into batches: which ones a step has, and their pixels, read ahead by other processes.

A step's images depend on (seed, step) alone: training that is taken up, in any number of processes, has the same ones.
"""

import atexit
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewstep.errors import UserError, first_line
from fewstep.eval.interfaces import IndexedImages
from fewstep.pipeline.training.randomness import batch_indices

AHEAD = 2  # batches that each process reads ahead
Pixels = tuple[np.ndarray, np.ndarray | None]
"""uint8 [B, C, H, W] and their labels int64 [B], or None."""


Reader = Callable[[Any], Pixels]
"""What makes pixels of a request, in this process or in another: UserError or OSError for whatever is wrong."""


class Feed(Protocol):
    """The order of a training's images, and how they are had."""

    @property
    def reader(self) -> Reader:
        """Makes pixels of what `requests` gives."""
        ...

    def indices(self, step: int) -> Tensor:
        """Which images are the global batch of `step`, by their place in the source, int64 [batch_size]."""
        ...

    def requests(self, start: int, stop: int, part: slice) -> Iterator[Any]:
        """What the reader needs for this part of the batches of the steps start..stop-1, one after the other."""
        ...


@dataclass(frozen=True)
class TakeImages:
    """Reads images by their indices, with their labels int64 [N]."""

    images: IndexedImages
    labels: Tensor | None

    def __call__(self, request: Tensor) -> Pixels:
        labels = None if self.labels is None else self.labels[request].numpy()
        return self.images.take(request).numpy(), labels


@dataclass(frozen=True)
class IndexedFeed:
    """Images that can be had in any order: every epoch in an order of its own."""

    reader: TakeImages
    seed: int
    batch_size: int

    def indices(self, step: int) -> Tensor:
        """See `Feed`."""
        return batch_indices(self.seed, len(self.reader.images), self.batch_size, step)

    def requests(self, start: int, stop: int, part: slice) -> Iterator[Tensor]:
        """See `Feed`."""
        return (self.indices(step)[part] for step in range(start, stop))


class Batches:
    """This process's part of each batch, step after step; another step than the next one begins anew there.

    part: which images of a batch. stop: the step after the last one. workers: processes that read ahead, ended by
    `close`; 0: none.
    """

    def __init__(self, feed: Feed, part: slice, stop: int, workers: int) -> None:
        self._feed, self._part, self._stop, self._workers = feed, part, stop, workers
        self._step = -1
        self._pixels: Pixels | None = None
        self._coming: Iterator[Any] | None = None
        self._end: Callable[[], object] = dict
        self._failed: Exception | None = None
        if workers:  # before torch takes the end of Python for its own, and Python waits for its children
            atexit.register(_close, weakref.ref(self))

    def get(self, step: int) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, C, H, W] and labels int64 [B], or None, of this process's part of the batch of `step`."""
        if self._pixels is None or step != self._step:
            if self._coming is None or step != self._step + 1 or step >= self._stop:
                self._coming = self._from(step)
            self._step, self._pixels = step, self._next(self._coming)
        images, labels = self._pixels
        return torch.from_numpy(images), None if labels is None else torch.from_numpy(labels)

    def close(self) -> None:
        """End the processes that read ahead."""
        self._end()
        self._end, self._coming, self._pixels = dict, None, None

    def _from(self, step: int) -> Iterator[Any]:
        self.close()
        feed, requests = self._feed, self._feed.requests(step, max(self._stop, step + 1), self._part)
        if self._workers == 0:
            return map(feed.reader, requests)
        before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
        coming = iter(
            DataLoader(
                _Answers(feed.reader),
                batch_size=None,
                sampler=self._until_one_fails(requests),
                num_workers=self._workers,
                prefetch_factor=AHEAD,
                collate_fn=_as_it_is,
                worker_init_fn=_leave_signals_to_the_parent,
                generator=torch.Generator(),  # not torch's own, which nothing here may move
            )
        )
        self._end = coming._shutdown_workers  # type: ignore[attr-defined] # by hand: an error holds on to the iterator
        with suppress(ValueError):  # not the main thread, for which torch sets none either
            signal.signal(signal.SIGCHLD, before)  # torch's raises in the midst of a step: see `_next`
        return coming

    def _until_one_fails(self, requests: Iterator[Any]) -> Iterator[Any]:
        """What fails ahead of its step waits for it: in a beginning DataLoader it would leave processes behind."""
        try:
            yield from requests
        except Exception as error:
            self._failed = error

    def _next(self, coming: Iterator[Any]) -> Pixels:
        try:
            answer = next(coming)
        except StopIteration:
            assert self._failed is not None
            raise self._failed from None
        except RuntimeError as error:  # a process that reads ahead is gone
            if self._workers == 0:
                raise
            remedy = f"one of the processes that read ahead was killed ({first_line(error)}): give fewer, or 0"
            raise UserError("data.workers", self._workers, remedy) from None
        if isinstance(answer, _Refused):
            raise UserError(answer.where, answer.value, answer.remedy)
        if isinstance(answer, OSError):
            raise answer
        return answer


def _close(batches: "weakref.ref[Batches]") -> None:
    if (still := batches()) is not None:
        still.close()


@dataclass(frozen=True)
class _Refused:
    """A UserError on its way from another process."""

    where: str
    value: object
    remedy: str


class _Answers(Dataset):
    """What a reader makes of requests; what is wrong comes back as a value, not as torch's report of it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, request: Any) -> object:  # noqa: ANN401 - see Reader
        try:
            return self.reader(request)
        except UserError as error:
            return _Refused(error.where, error.value, error.remedy)
        except OSError as error:
            return error


def _as_it_is(answer: object) -> object:
    """Arrays go through a pipe, not through shared memory, of which a container may have little."""
    return answer


def _leave_signals_to_the_parent(worker: int) -> None:
    """It ends this process when training ends, or is noticed to be gone; a signal to all is its business."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def drained(requests: Iterable[Any], reader: Reader) -> tuple[Tensor, Tensor | None]:
    """All images of some requests, uint8 [N, C, H, W], and their labels, int64 [N], or None."""
    images, labels = zip(*map(reader, requests), strict=True)
    return torch.from_numpy(np.concatenate(images)), (
        None if labels[0] is None else torch.from_numpy(np.concatenate(labels))
    )
