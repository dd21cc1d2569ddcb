"""Several processes of one run (torchrun, accelerate launch): one leads, the others train beside it.

The leading process decides what is to be done, writes and speaks. The others come along to each training, and wait for
what it decides between two. A failure or a signal anywhere ends them all.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from fewstep import __version__
from fewstep.errors import UserError, first_line

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=7)  # while the leading process measures; that one is gone is noticed at once
_GONE = ("closed by peer", "reset by peer", "connection refused", "broken pipe", "socket closed")


class _Left(NamedTuple):
    """That the leading process leaves, and with which exit code."""

    code: int


def join(*, cpu: bool = False) -> torch.device:
    """The device of this process, by accelerate's choice, or the CPU; the other processes are waited for.

    UserError: they cannot meet, as where the port that they are to meet at is in use.
    """
    several = {} if int(os.environ.get("WORLD_SIZE", "1")) == 1 else {"timeout": LONGEST_WAIT}
    if several:
        atexit.register(_leave)
    try:
        return torch.device(PartialState(cpu=cpu, **several).device or "cpu")
    except dist.DistNetworkError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError("processes", place, f"cannot meet there ({first_line(error)})") from None


def _leave() -> None:
    """End the threads of the connections, which abort the process where they outlive it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leads() -> bool:
    """Whether this is the leading process, or the only one."""
    return PartialState().is_main_process


def number() -> int:
    """How many processes there are."""
    return PartialState().num_processes


def mine(slices: int) -> range:
    """The parts of a batch that this process trains on."""
    each = slices // number()
    return range(PartialState().process_index * each, (PartialState().process_index + 1) * each)


def led(work: Callable[[], T]) -> T:
    """What `work` gives, done by the leading process alone; the others wait for it. It may not call this itself."""
    if number() == 1:
        return work()
    return _shared(work() if leads() else None)


@contextmanager
def together(what: object, folder: Path) -> Iterator[None]:
    """All that several processes do together in a folder; what ends one of them ends all.

    `what`: the run's configuration, which all must have. UserError: they differ, in it or in fewstep's version, or the
    folder is not the same for all.
    """
    if number() == 1:
        yield
        return
    if leads():
        folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".processes-{_shared(token_hex(8) if leads() else None)}"
    try:
        _check_alike(what, mark)
    finally:
        mark.unlink(missing_ok=True)
    yield from _ending_together()
    led(lambda: None)  # nobody goes before all have come here


def _check_alike(what: object, mark: Path) -> None:
    """UserError, in all processes, where one of them is not as the others are; `mark`: a new file in the folder."""
    if leads():
        mark.touch()
    if len({str(each) for each in _gathered([__version__, what])}) > 1:
        raise UserError("processes", None, "differ in their configuration or in fewstep's version: start all the same")
    if not all(_gathered(mark.exists())):
        raise UserError(
            mark.parent, None, "is not the same folder for all processes: give one that all can see (--out)"
        )


def _ending_together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of a collective whose other end is gone
        if not any(text in str(error).lower() for text in _GONE):
            raise
        raise UserError("processes", None, f"another one of this run has ended ({first_line(error)})") from None
    except BaseException as error:
        if leads() and not _training:
            with suppress(RuntimeError):  # they are gone already
                _shared(_Left(_exit_code(error)))
        elif not leads() and not _training and not isinstance(error, SystemExit):
            print(f"fewstep: process {PartialState().process_index}: {first_line(error)}", file=sys.stderr)  # type: ignore[arg-type]
        raise


@contextmanager
def training() -> Iterator[None]:
    """Within, the processes meet at each step: a leading one that leaves has nobody waiting for what it decides."""
    _training.append(True)
    yield
    _training.clear()


_training: list[bool] = []


def _shared(value: Any) -> Any:  # noqa: ANN401 - whatever was decided
    box = [value]
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], _Left) and not leads():
        raise SystemExit(box[0].code)
    return box[0]


def _gathered(value: object) -> list[Any]:
    found: list[Any] = [None] * number()
    dist.all_gather_object(found, value)
    return found


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError | OSError) else 1
