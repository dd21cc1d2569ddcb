"""What a long job tells: a progress bar, a JSON-lines log and TensorBoard curves."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.files import write_bytes

console = Console(highlight=False, soft_wrap=True)
_PLAIN_EVERY = 15.0


def say(text: str) -> None:
    """One line for the person watching, at once also where the output is a file or a pipe."""
    console.print(text, markup=False)
    console.file.flush()


class ProgressLine:
    """A progress bar on a terminal; elsewhere a plain line every 15 seconds, so that a log file stays readable."""

    def __init__(self, title: str, total: float, start: float = 0.0) -> None:
        self.title, self.total, self.start = title, total, start
        self.began = self.last = time.monotonic()
        self.bar = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.task = self.bar.add_task(title, total=total, completed=int(start), text="")

    def __enter__(self) -> "ProgressLine":
        if self.bar:
            self.bar.start()
        return self

    def update(self, done: float, text: str) -> None:
        """`done` of the total; `text` stands beside the bar."""
        if self.bar:
            self.bar.update(self.task, completed=done, text=text)
            return
        now = time.monotonic()
        if now - self.last >= _PLAIN_EVERY and done > self.start:
            self.last = now
            left = (now - self.began) / (done - self.start) * (self.total - done)
            say(f"  {self.title} {100 * done / self.total:.0f}%  {text}  {left:.0f} s left")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()


class TrainingLog:
    """Appends records to a JSON-lines file and to TensorBoard, where it is installed.

    A resumed run drops the lines after `start_step`, so that each step stands once.
    """

    def __init__(self, path: Path, tensorboard: Path, start_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if _step(line) <= start_step] if start_step else []
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close())
        self.board = None
        if _has_tensorboard():
            from torch.utils.tensorboard.writer import SummaryWriter  # a second of imports, and an extra

            self.board = SummaryWriter(str(tensorboard), purge_step=start_step)

    def write(self, record: Mapping[str, float]) -> None:
        """One record; `step` is among its keys."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.board:
            for name, value in record.items():
                if name != "step":
                    self.board.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        """Close both files."""
        self.file.close()
        if self.board:
            self.board.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _step(line: str) -> float:
    """A line's step; infinity for a line that a full disk or a kill cut short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
