"""Images and their features by several threads: while one batch is generated, another is in the extractor.

On a processor each thread computes on its share of the cores, which small networks use better than one thread that
splits every operation among all of them. On a GPU one thread feeds the device while another stores its results.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from fewstep.eval.cancel import can_be_cancelled
from fewstep.eval.features.extractors import Extractor
from fewstep.eval.interfaces import ALONE, ImageSource, Shares
from fewstep.progress import ProgressLine

MOST_THREADS = 4

Store = Callable[[slice, Tensor, Tensor], None]


def each_batch(
    source: ImageSource, extractor: Extractor, batch_size: int, what: str, store: Store, shares: Shares = ALONE
) -> None:
    """Call `store(which, images uint8 [B, C, H, W], features float32 [B, D])` for every batch, in order.

    `batch_size` images are in work at a time, over all threads; batches are made of equal size, which of several
    processes are dealt out in turn and stored by each. A progress line is named `what`.
    """
    count, cancelled = len(source), threading.Event()
    with _divided_cores(extractor.device) as threads, ProgressLine(what, count) as line:
        size = math.ceil(batch_size / threads)
        size = math.ceil(count / (threads * math.ceil(count / (threads * size))))
        starts = range(0, count, size)
        mine, waiting = deque(starts[shares.index :: shares.number]), deque[Future[tuple[Tensor, Tensor]]]()
        with ThreadPoolExecutor(threads, initializer=can_be_cancelled, initargs=(cancelled,)) as pool:
            try:
                for first in range(0, len(starts), shares.number):
                    while mine and len(waiting) <= threads:
                        waiting.append(pool.submit(_batch, source, extractor, mine.popleft(), size))
                    made = shares.gather(waiting.popleft().result() if waiting else ())
                    for start, (images, features) in zip(
                        starts[first:], made, strict=False
                    ):  # the last turn may be short
                        stop = start + len(images)
                        store(slice(start, stop), images, features)
                        line.update(stop, f"{stop:,} of {count:,}")
            except BaseException:
                cancelled.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _batch(source: ImageSource, extractor: Extractor, start: int, size: int) -> tuple[Tensor, Tensor]:
    images = source.images(start, start + size)
    return images, extractor(images)


@contextmanager
def _divided_cores(device: torch.device) -> Iterator[int]:
    """How many threads to work with; threads begun within have an equal share of torch's cores each."""
    if device.type != "cpu":
        yield 1
        return
    cores = torch.get_num_threads()
    threads = min(cores, MOST_THREADS)
    torch.set_num_threads(cores // threads)  # a new thread takes this over and keeps it
    try:
        yield threads
    finally:
        torch.set_num_threads(cores)
