"""What a long job tells the person watching: lines, and a progress bar where there is a terminal."""

import os
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.errors import printable

console = Console(highlight=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
"""Of several processes of one run the first speaks alone."""
_PLAIN_EVERY = 15.0


def say(text: str) -> None:
    """One line for the person watching, at once also where the output is a file or a pipe."""
    console.print("\n".join(map(printable, text.split("\n"))), markup=False)
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
