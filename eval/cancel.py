"""Threads whose results nobody waits for any more leave at the next network evaluation."""

import threading

_of_this_thread = threading.local()


class Cancelled(Exception):
    """The work of this thread is not wanted any more."""


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
