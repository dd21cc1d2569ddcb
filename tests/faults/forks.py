"""Processes that cost milliseconds: a server that has imported everything once forks a child for every job.

A job is a function of `faults.tasks` with its arguments, in a process group of its own, that ends with the function's
exit code. The server is itself a new process, so that no thread of the tests is forked with it; it runs one job at a
time.

    python -m faults.forks      reads a job as a line of JSON, answers with its pid and then with its exit code
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

PRELOADED = (
    "accelerate.tracking",
    "diffusers.pipelines.consistency_models.pipeline_consistency_models",
    "diffusers.pipelines.ddpm.pipeline_ddpm",
    "diffusers.schedulers.scheduling_consistency_models",
    "fewstep.pipeline.cli.arguments",
    "fewstep.pipeline.stages.run",
    "fewstep.pipeline.sampling.sample",
    "safetensors.torch",
    "sklearn.datasets",
    "torch.utils.tensorboard.writer",
)
TESTS = Path(__file__).resolve().parent.parent


class Child:
    """A job in progress. `out` and `err` are the files of what it prints."""

    def __init__(self, server: "Forks", pid: int, out: Path, err: Path) -> None:
        self.server, self.pid, self.out, self.err = server, pid, out, err
        self.cpu_seconds = 0.0
        self.code = 0
        self.ended = False

    def wait(self) -> int:
        """Its exit code, -9 when it was killed; from then on `cpu_seconds` is what it used of the processor."""
        if not self.ended:
            answer = self.server.answer()
            self.ended, self.code, self.cpu_seconds = True, answer["code"], answer["cpu_seconds"]
        return self.code

    def kill_after(self, cpu_seconds: float) -> int:
        """Kill -9 its process group when it has used so much of the processor; its exit code, if it ended before.

        Time of the processor, not of the wall: a machine that is busy or stopped changes nothing.
        """
        while not self.server.answered():
            if self._cpu_seconds_now() >= cpu_seconds:
                os.killpg(self.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        return self.wait()

    def _cpu_seconds_now(self) -> float:
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Forks:
    """The server as the tests see it. What the job in progress prints goes to two files in the folder `printed`."""

    def __init__(self, printed: Path) -> None:
        self.printed = printed
        paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def start(self, function: str, environment: Mapping[str, str] | None = None, /, **job: Any) -> Child:
        """Begin `faults.tasks.FUNCTION(**job)` with these environment variables."""
        out, err = self.printed / "out.txt", self.printed / "err.txt"
        line = {"function": function, "job": job, "out": str(out), "err": str(err), "environment": environment or {}}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()
        return Child(self, self.answer()["pid"], out, err)

    def run(self, function: str, environment: Mapping[str, str] | None = None, /, **job: Any) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a job."""
        child = self.start(function, environment, **job)
        return child.wait(), child.out.read_text(), child.err.read_text()

    def answer(self) -> dict[str, Any]:
        """The next line of the server."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def answered(self) -> bool:
        """Whether the next line is there."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.terminate()  # it may still be importing
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    """Fork a child for each job, until the input ends."""
    for name in (*PRELOADED, "faults.tasks"):
        import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(job)
        print(json.dumps({"pid": pid}), flush=True)
        _, status, used = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "cpu_seconds": used.ru_utime + used.ru_stime}), flush=True)


def _child(job: Mapping[str, Any]) -> None:
    os.setsid()
    for number, path in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), number)
    os.environ.update(job["environment"])
    try:
        code = getattr(import_module("faults.tasks"), job["function"])(**job["job"]) or 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
