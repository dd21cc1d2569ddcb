"""A run in several processes, as its tests start them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

SLICES = {"teacher__train__slices": 2, "student__train__slices": 2}
LONG = SLICES | {"teacher__train__kimg": 64, "teacher__train__checkpoint_kimg": 0.32}
ON_CPU = {"ACCELERATE_USE_CPU": "true"}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def started(
    arguments: Sequence[Sequence[str]], port: int | None = None, own: Sequence[dict[str, str]] = ()
) -> list[subprocess.Popen[str]]:
    """A process for each list of arguments, as torchrun starts them; `own`: more of each one's environment."""
    there = {"WORLD_SIZE": str(len(arguments)), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port or free_port())}
    there |= {"LOCAL_WORLD_SIZE": there["WORLD_SIZE"]} | ON_CPU
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fewstep", *each],
            env={**os.environ, **there, "RANK": str(rank), "LOCAL_RANK": str(rank)} | (own[rank] if own else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, each in enumerate(arguments)
    ]


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    said = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


def torchrun(*options: str) -> list[str]:
    """The beginning of a command that starts fewstep in two processes of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*launcher, *options, "-m", "fewstep"]


def log(run: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "logs" / f"{stage}.jsonl").read_text().splitlines()]


def last_step(run: Path) -> int:
    """The last step of the teacher's training that the log holds."""
    try:
        return max((record["step"] for record in log(run, "teacher")), default=0)
    except ValueError:  # a line that is being written
        return 0


def wait_for_steps(run: Path, seconds: float = 120) -> None:
    """Wait until the teacher's training has gone on."""
    reached, until = last_step(run), time.monotonic() + seconds
    while last_step(run) <= reached:
        assert time.monotonic() < until
        time.sleep(0.05)


def losses(run: Path, stage: str = "teacher") -> list[float]:
    return [record["loss"] for record in log(run, stage)]


def weights(run: Path, stage: str = "teacher") -> dict[str, Tensor]:
    return load_file(run / stage / "unet" / "diffusion_pytorch_model.safetensors")


def wait_for(run: Path, pattern: str, seconds: float = 120) -> None:
    """Wait until there is a file of this pattern in a run."""
    until = time.monotonic() + seconds
    while not list(run.glob(pattern)):
        if time.monotonic() > until:
            pytest.fail(f"no {pattern} after {seconds:.0f} s")
        time.sleep(0.05)


def wait_for_checkpoint(run: Path) -> None:
    wait_for(run, "checkpoints/teacher/step-*/MANIFEST.json")
