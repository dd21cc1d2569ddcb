"""SIGTERM and Ctrl-C: at once outside training, after the step within it. Exit codes 143 and 130."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class PendingSignal:
    """Which signal asked to stop, if one did."""

    number: int | None = None

    def leave(self) -> None:
        """Raise what the signal means: KeyboardInterrupt, or SystemExit(143)."""
        if self.number is not None:
            raise _meaning(self.number)


def _meaning(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def deferred_signals() -> Iterator[PendingSignal]:
    """Within, SIGTERM and Ctrl-C only set `.number`: the caller reads it once a step, saves and leaves.

    One that came after the caller had last looked is raised at the end.
    """
    pending = PendingSignal()

    def note(number: int, frame: FrameType | None) -> None:
        pending.number = number

    with _handlers(note):
        yield pending
    pending.leave()


@contextmanager
def raising_signals() -> Iterator[None]:
    """Within, SIGTERM raises SystemExit(143), as Ctrl-C raises KeyboardInterrupt.

    A further signal, as timeout(1) sends one, does not interrupt what cleans up after the first.
    """
    raised: BaseException | None = None

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if raised is None or sys.exception() is not raised:
            raised = _meaning(number)
            raise raised

    with _handlers(leave):
        yield


@contextmanager
def ignored_signals() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C do nothing: a process that leaves already does so in order."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: object) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in _SIGNALS}  # type: ignore[arg-type]
    except ValueError:  # not the main thread: signals are the main thread's business
        yield
        return
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
