"""Images and their features by several threads: while one batch is generated, another is in the extractor.

On a processor each thread computes on its share of the cores, which small networks use better than one thread that
splits every operation among all of them. On a GPU one thread feeds the device while another stores its results.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch
from torch import Tensor

from fewstep.eval.cancel import workers
from fewstep.eval.features.extractors import Extractor
from fewstep.eval.interfaces import ALONE, ImageSource, Shares
from fewstep.progress import ProgressLine

MOST_THREADS = 4

Store = Callable[[slice, Tensor, Tensor], None]


def batch_length(count: int, batch_size: int, device: torch.device) -> int:
    """Return how many of `count` images a thread takes at once, so that all threads together have `batch_size`."""
    threads = _threads(device)
    most = math.ceil(batch_size / threads)
    return math.ceil(count / (threads * math.ceil(count / (threads * most))))


def each_batch(
    source: ImageSource,
    extractor: Extractor,
    batch_size: int,
    what: str,
    store: Store,
    shares: Shares = ALONE,
    done: int = 0,
) -> None:
    """Call `store(which, images uint8 [B, C, H, W], features float32 [B, D])` for every batch, in order.

    `batch_size` images are in work at a time, over all threads; batches are made of equal size, which of several
    processes are dealt out in turn and stored by each. The first `done` images, a whole number of batches, are left
    out. A progress line is named `what`.
    """
    count, size = len(source), batch_length(len(source), batch_size, extractor.device)
    starts = range(0, count, size)[math.ceil(done / size) :]
    mine, waiting = deque(starts[shares.index :: shares.number]), deque[Future[tuple[Tensor, Tensor]]]()
    with (
        _divided_cores(extractor.device) as threads,
        ProgressLine(what, count, done) as line,
        workers(threads) as pool,
    ):
        for first in range(0, len(starts), shares.number):
            while mine and len(waiting) <= threads:
                waiting.append(pool.submit(_batch, source, extractor, mine.popleft(), size))
            made = shares.gather(waiting.popleft().result() if waiting else ())
            for start, (images, features) in zip(starts[first:], made, strict=False):  # the last turn may be short
                stop = start + len(images)
                store(slice(start, stop), images, features)
                line.update(stop, f"{stop:,} of {count:,}")


def _batch(source: ImageSource, extractor: Extractor, start: int, size: int) -> tuple[Tensor, Tensor]:
    images = source.images(start, start + size)
    return images, extractor(images)


def _threads(device: torch.device) -> int:
    return min(torch.get_num_threads(), MOST_THREADS) if device.type == "cpu" else 1


@contextmanager
def _divided_cores(device: torch.device) -> Iterator[int]:
    """Yield how many threads to work with; threads begun within have an equal share of torch's cores each."""
    cores, threads = torch.get_num_threads(), _threads(device)
    if device.type == "cpu":
        torch.set_num_threads(cores // threads)  # a new thread takes this over and keeps it
    try:
        yield threads
    finally:
        torch.set_num_threads(cores)
