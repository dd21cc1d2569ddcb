"""Several processes of one run (torchrun, accelerate launch): one leads, the others work beside it.

The leading process decides what is to be done, writes and speaks. The others come along to each training, make their
shares of trajectories and images, and wait for what it decides in between. A failure or a signal anywhere ends all.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

import fewstep
from fewstep.errors import UserError, first_line
from fewstep.files import sha256_file, sha256_json
from fewstep.pipeline.training.peers import LONGEST_WAIT, LastWord, Peers, leave
from fewstep.pipeline.training.signals import ignored_signals
from fewstep.progress import say

T = TypeVar("T")
_SIGNALS = {130: "SIGINT", 143: "SIGTERM"}  # by exit code
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""By the variable in which `accelerate launch` asks for it."""
_peers: list[Peers] = []
"""Those of the run in progress; none where it is alone."""


class _Task(NamedTuple):
    """What the leading process calls out for all to do."""

    value: Any


class Shares:
    """The `fewstep.eval.interfaces.Shares` of this process."""

    @property
    def number(self) -> int:
        """How many processes there are."""
        return number()

    @property
    def index(self) -> int:
        """Which this one is."""
        return PartialState().process_index

    def call(self, *task: object) -> None:
        """Have the others, which `follow`, do a task beside this process."""
        if leads() and _peers:
            _peers[0].exchanged(_Task(task))

    def gather(self, mine: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """What all processes made, in their order."""
        return (
            _peers[0].exchanged([each.clone() for each in mine]) if _peers else [mine]
        )  # a view would bring its whole


def join(*, cpu: bool = False) -> torch.device:
    """The device of this process, by accelerate's choice, or the CPU; the other processes are waited for.

    UserError: they cannot meet, as where the port that they are to meet at is in use; they are to share weights out.
    """
    _check_whole(cpu=cpu)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        _leave_with(None)
        # accelerate's state lets processes without a GPU meet only where it is told that they are to do without
        asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        cpu = cpu or asked or not torch.accelerator.is_available()
    try:
        state = PartialState(cpu=cpu, **(_meeting_place() if several else {}))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError("processes", place, f"cannot meet there ({first_line(error)})") from None
    if state.device is None or state.device.type == "cpu":
        state.device = torch.device("cpu")  # to cpu:0, which it is called of several, each tensor would be copied
    return state.device


def _meeting_place() -> dict[str, Any]:
    """Where the processes meet, as arguments of `init_process_group`.

    The agent of torchrun keeps its store when it starts them again, with the addresses of those that have ended, so
    that each start has a part of the store to itself. Agents of several machines count their starts each for itself.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return {"store": store, "rank": rank, "world_size": world_size, "timeout": LONGEST_WAIT}


def _check_whole(*, cpu: bool) -> None:
    """UserError where accelerate is to share the weights out among the processes."""
    asked = next((name for key, name in _SHARDING.items() if os.environ.get(key, "").lower() in ("1", "true")), None)
    if asked is None:
        return
    if cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available():
        raise UserError("accelerate", asked, "shares weights out among GPUs, and this run is on a CPU: leave it out")
    remedy = "is not supported, since averages and checkpoints are of whole weights: leave it out and all train by DDP"
    raise UserError("accelerate", asked, remedy)


def _leave_with(code: int | None) -> None:
    atexit.unregister(leave)
    atexit.register(leave, code)


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
    if not _peers:
        return work()
    return _peers[0].exchanged(work() if leads() else None)[0]


def meet() -> None:
    """Wait until all have come here."""
    led(lambda: None)


@contextmanager
def dealing() -> Iterator[Shares]:
    """Within, the leading process calls tasks out and has its own share of them; the others `follow`."""
    yield Shares()
    meet()


def follow(do: Callable[..., object]) -> None:
    """Beside the leading process: do the share in each task that it calls out, until its `dealing` ends."""
    for peers in _peers:
        while isinstance(word := peers.exchanged(None)[0], _Task):
            do(*word.value)


def copy_leading(network: nn.Module) -> None:
    """Give a network the weights that it has in the leading process."""
    if _peers:
        for value in network.state_dict().values():
            whole = value.contiguous()
            dist.broadcast(whole, src=0)
            value.copy_(whole)


@contextmanager
def together(what: object, folder: Path) -> Iterator[None]:
    """All that several processes do together in a folder; what ends one of them ends all.

    `what`: the run's configuration, which all must have. UserError: they differ, in it or in fewstep's code, or the
    folder is not the same for all.
    """
    if number() == 1:
        yield
        return
    peers = Peers()
    _peers[:] = [peers]
    try:
        _check_alike(peers, what, folder)
        yield
        peers.part()
    except BaseException as error:
        with ignored_signals():
            ended = _parted(peers, error)
        _leave_with(_exit_code(ended))
        if ended is error:
            raise
        raise ended from None
    finally:
        _peers.clear()


def _parted(peers: Peers, error: BaseException) -> BaseException:
    """What this process ends with, because of an error: after its last word to the others."""
    if (cause := peers.cause(error)) is not None:
        ended = _ended_by(cause)
        peers.say(_exit_code(ended), cause.reason)
        return ended
    heard = peers.say(_exit_code(error), first_line(error))
    if not (leads() or heard or isinstance(error, SystemExit | KeyboardInterrupt)):
        print(f"fewstep: process {peers.rank}: {first_line(error)}", file=sys.stderr)
    return error


def _check_alike(peers: Peers, what: object, folder: Path) -> None:
    """UserError, in all processes, where one of them is not as the others are."""
    mark = folder / f".processes-{token_hex(8)}"
    try:
        if leads():
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        own = {"version of fewstep": fewstep.__version__, "code of fewstep": _code(), "configuration": str(what)}
        said = peers.exchanged((own, mark.name))
        differing = [name for name in own if len({each[name] for each, _ in said}) > 1]
        if differing:
            raise UserError("processes", None, f"differ in their {' and '.join(differing)}: start all with the same")
        if not all(peers.exchanged((folder / said[0][1]).exists())):
            remedy = "is not the same folder for all processes: give one that all can see (--out)"
            raise UserError(folder, None, remedy)
    finally:
        mark.unlink(missing_ok=True)


def _code() -> str:
    """A hash of the Python files of fewstep that this process runs, wherever they lie."""
    own = Path(fewstep.__file__).parent
    files = {file.name: file for file in own.glob("*.py")}
    for name in ("eval", "pipeline", "students", "teachers"):
        place = Path(import_module(f"fewstep.{name}").__path__[0])
        files |= {f"{name}/{file.relative_to(place)}": file for file in place.rglob("*.py")}
    return sha256_json({name: sha256_file(file) for name, file in files.items()})


def _ended_by(cause: LastWord) -> BaseException:
    """What ends this process, where another one's end is the cause."""
    if cause.code is None:
        return UserError("processes", None, f"another one of this run has ended ({cause.reason})")
    if cause.code in _SIGNALS:
        say(f"  stopped: process {cause.process} has got {_SIGNALS[cause.code]}; the same command goes on")
        return SystemExit(cause.code)
    return UserError(f"process {cause.process}", None, cause.reason)


@contextmanager
def training() -> Iterator[None]:
    """Within, the processes meet at each step, and notice there that one of them has ended."""
    for peers in _peers:
        peers.training = True
    yield
    for peers in _peers:
        peers.training = False


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError | OSError) else 1
