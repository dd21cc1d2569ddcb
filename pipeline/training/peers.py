"""The other processes of a run: words exchanged with them, and the news that one of them has ended.

Both go over connections of their own on the processor (gloo), beside those that gradients are averaged over: to wait
there takes neither a processor nor a GPU, and a signal ends it at once. Between the leading process and each other one
a last word is awaited all the time, so that an end is noticed whatever the two are doing then.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from threading import Event, Thread
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from fewstep.errors import first_line

LONGEST_WAIT = timedelta(days=7)  # while the leading process measures; that one is gone is noticed at once
_GONE = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "socket closed", "process exited")
_LETTER = 8192  # bytes
_SECONDS = 5.0  # for a last word to be heard
_GRACE = 1.0  # seconds for a process to notice by itself, and leave in order


class LastWord(NamedTuple):
    """Which process has ended, with which exit code (None: without a word, as one that is killed does), and why."""

    process: int
    code: int | None
    reason: str


class Peers:
    """The others, from `join` of all processes on; `training` says that they meet at each step now."""

    def __init__(self) -> None:
        self.rank, self.number = dist.get_rank(), dist.get_world_size()
        self._words, self._ends = _connections(), _connections()
        self.training, self._unheard = False, 0
        self._left: LastWord | None = None
        self._gone = set[int]()
        self._known, self._leaving, self._interrupted = Event(), Event(), Event()
        others = range(1, self.number) if self.rank == 0 else [0]
        self._listening = {other: _started(self._listen, other) for other in others}

    def exchanged(self, mine: object) -> list[Any]:
        """What each process gives, in their order; all come here, in the same order of calls.

        RuntimeError: one of them is gone.
        """
        found: list[Any] = [None] * self.number
        done = Future[None]()

        def exchange() -> None:
            try:
                dist.all_gather_object(found, mine, group=self._words)
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        _started(exchange)
        done.result()
        return found

    def say(self, code: int, reason: str) -> bool:
        """This process's last word to those that it listens to; whether they have answered it within some seconds.

        Where it leaves before the end (a code that is not 0) the leading process goes first: what has started them may
        end the others as soon as one has gone, and the reason is the leading one's to tell.
        """
        self._leaving.set()
        word, until = LastWord(self.rank, code, reason[:1000]), time.monotonic() + _SECONDS
        sending = [_started(self._send, word, other) for other in self._listening.keys() - self._gone]
        for thread in [*sending, *self._listening.values()]:
            thread.join(max(0.0, until - time.monotonic()))
        heard = self._unheard == 0 and time.monotonic() < until
        heard |= self._left is not None and self._left.code is not None  # who listens has left before, of itself
        if code and self.rank > 0:
            _started(self._outlast).join(max(0.0, until - time.monotonic()))
        return heard

    def part(self) -> None:
        """At the end of all that was to be done together: nobody goes before all have come here."""
        self.exchanged(None)
        self.say(0, "")

    def cause(self, error: BaseException) -> LastWord | None:
        """Who ended first, where `error` comes of another process's end; None where it does not."""
        if isinstance(error, SystemExit) and self._interrupted.is_set():
            return self._left
        if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _GONE):
            self._known.wait(2 * _GRACE)  # the last word takes another way
            return self._left or LastWord(-1, None, first_line(error))
        return None

    def _send(self, word: LastWord, other: int) -> None:
        text = json.dumps(word, ensure_ascii=False).encode("utf-8", "replace")
        letter = torch.zeros(_LETTER, dtype=torch.uint8)
        letter[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        try:
            dist.send(letter, dst=other, group=self._ends)
        except RuntimeError:  # it is gone already
            self._unheard += 1

    def _outlast(self) -> None:
        letter = torch.zeros(_LETTER, dtype=torch.uint8)
        with suppress(RuntimeError):  # that it is gone, after what else it may have said
            while True:
                dist.recv(letter, src=0, group=self._ends)

    def _listen(self, other: int) -> None:
        letter = torch.zeros(_LETTER, dtype=torch.uint8)
        try:
            dist.recv(letter, src=other, group=self._ends)
            word = LastWord(*json.loads(bytes(letter.tolist()).rstrip(b"\0")))
        except RuntimeError as error:
            word = LastWord(other, None, first_line(error))
        if word.code == 0:
            return
        self._gone.add(other)
        if word.code and not self._leaving.is_set():
            self._send(LastWord(self.rank, 0, ""), other)  # a connection that is closed at once may lose what came
        self._left = self._left or word
        self._known.set()
        time.sleep(_GRACE)
        if not (self.training or self._leaving.is_set()):
            self._interrupted.set()
            os.kill(os.getpid(), signal.SIGTERM)


def leave(code: int | None) -> None:
    """End the connections as the process ends, which they would abort where they outlive it.

    code: with which it is to end at once, as where one of its threads still waits for another process. None: all have
    parted.
    """
    if code is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()


def _connections() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _started(work: Callable[..., None], *arguments: object) -> Thread:
    thread = Thread(target=work, args=arguments, daemon=True)  # one that waits keeps nobody from leaving
    thread.start()
    return thread
