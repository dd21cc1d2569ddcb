"""Two runs never share a folder."""

import subprocess
import sys

import pytest

from fewstep.errors import UserError
from fewstep.pipeline.stages.lock import run_lock

HOLD = """
import sys
from pathlib import Path
from fewstep.pipeline.stages.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_by_name_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "runs" / "one"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"in use by another run \(process {holder.pid}\)") as refused,
            run_lock(folder),
        ):
            pass
        assert str(folder) in str(refused.value)
        holder.kill()
    with run_lock(folder):  # the kernel freed the lock of a killed process
        pass


def test_a_lock_is_given_back(tmp_path):
    for _ in range(2):
        with run_lock(tmp_path / "one"), run_lock(tmp_path / "two"):
            pass
