"""SIGTERM on the digits preset: gone within five seconds in every stage, and the same command goes on."""

import signal
import subprocess
import sys
import threading
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SECONDS = 5.0
SHORT = ["--teacher.train.kimg", "8", "--student.train.kimg", "6", "--student.search_images", "200"]
SHORT += ["--eval.samplers", '["teacher@ddpm:1000", "student@1"]', "--eval.seed_blocks", "2"]
MOMENTS = (  # a line that the run prints, and how long after it the signal comes
    ("data: reading", 0.0),
    ("teacher: training", 2.0),
    ("student: converting", 2.0),
    ("student: distilling", 3.0),
    ("searching the two-step noise level", 0.5),
    ("reference: 1,797 real images", 3.0),  # in the sampling of DDPM
    ("Timing 2 samplers", 2.0),
    ("Cold start of 2 models", 2.0),
)


class Run:
    """`fewstep run digits` in a process; `wait_for` a line of its output."""

    def __init__(self, out):
        command = [sys.executable, "-u", "-m", "fewstep.pipeline", "run", "digits", "--out", str(out), *SHORT]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.changed = [], threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify()

    def wait_for(self, text):
        with self.changed:
            assert self.changed.wait_for(lambda: any(text in line for line in self.lines), timeout=900), self.lines[-3:]

    def stop(self):
        """Send SIGTERM; seconds until the process is gone, and its exit code."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        return time.monotonic() - began, code


def test_sigterm_ends_every_stage_within_five_seconds_and_the_run_ends_well(tmp_path):
    took = {}
    for text, delay in MOMENTS:
        run = Run(tmp_path)
        run.wait_for(text)
        time.sleep(delay)
        took[text], code = run.stop()
        print(f"{text}: {took[text]:.1f} s")
        assert code == 143, run.lines[-5:]
        assert not any("Traceback" in line for line in run.lines)
    assert max(took.values()) < SECONDS
    last = Run(tmp_path)
    assert last.process.wait(900) == 0
    assert (tmp_path / "digits" / "report" / "index.html").is_file()
