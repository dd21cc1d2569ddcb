"""Threads that work beside the main one, and leave at the next network evaluation when nobody waits for them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_of_this_thread = threading.local()


class Cancelled(Exception):
    """The work of this thread is not wanted any more."""


@contextmanager
def workers(number: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads. All of them have ended when the block is left, even if a signal interrupts the wait.

    A thread that outlives the block could be inside a network when the interpreter finalizes, which aborts the process
    (134). `Thread.join` does not prevent this: before Python 3.13 a signal within it marks a running thread as ended.
    So a thread that gets no signals joins the others.
    """
    cancelled, ended = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(number, initializer=can_be_cancelled, initargs=(cancelled,))

    def end() -> None:
        pool.shutdown(cancel_futures=True)
        ended.set()

    interruption: BaseException | None = None
    try:
        yield pool
    finally:
        cancelled.set()
        threading.Thread(target=end).start()
        while not ended.is_set():
            try:
                ended.wait()
            except (KeyboardInterrupt, SystemExit) as error:
                interruption = error
        if interruption is not None:
            raise interruption


def can_be_cancelled(cancelled: threading.Event) -> None:
    """Called once in a thread: `stop_if_cancelled` leaves it when the event is set."""
    _of_this_thread.cancelled = cancelled


def stop_if_cancelled(*_: object) -> None:
    """Raise Cancelled in a thread that is to leave; a forward hook of every network that samples or extracts.

    So a signal ends a run within one evaluation, not after a batch of a thousand.
    """
    event = getattr(_of_this_thread, "cancelled", None)
    if event is not None and event.is_set():
        raise Cancelled
