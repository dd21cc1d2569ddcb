"""What a training leaves: a JSON-lines log and TensorBoard curves."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.files import write_bytes


class TrainingLog:
    """Appends records to a JSON-lines file and to TensorBoard, where it is installed.

    A resumed run drops the lines after `start_step`, so that each step stands once.
    """

    def __init__(self, path: Path, tensorboard: Path, start_step: int) -> None:
        self.has_tensorboard = _has_tensorboard()
        if self.has_tensorboard:  # whether it can be written is known before any work
            tensorboard.mkdir(parents=True, exist_ok=True)
            if not os.access(tensorboard, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tensorboard))
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if _step(line) <= start_step] if start_step else []
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close())
        self.tensorboard, self.start_step = tensorboard, start_step
        self.board: Any = None

    def write(self, record: Mapping[str, float]) -> None:
        """One record; `step` is among its keys."""
        if self.board is None and self.has_tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter  # seconds of imports, and an extra

            self.board = SummaryWriter(str(self.tensorboard), purge_step=self.start_step + 1)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.board:
            for name, value in record.items():
                if name != "step":
                    self.board.add_scalar(name, value, int(record["step"]))

    def sync(self) -> None:
        """Bring the records to the disk: a checkpoint written after this never stands without the lines before it."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close both files."""
        self.file.close()
        if self.board:
            self.board.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _step(line: str) -> float:
    """A line's step; infinity for a line that a full disk, a kill or a power cut spoiled."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
