"""A process that is killed under torchrun's agent: all are started again and go on from the checkpoint."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import tiny_arguments

from several import ON_CPU, SLICES, last_step, log, torchrun, wait_for_checkpoint

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
SETTINGS = SLICES | {"teacher__train__kimg": 3.2, "teacher__train__checkpoint_kimg": 0.32}  # 100 steps, saved every 10


def ranks(agent: int) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    found = {}
    for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if rank := re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes()):
            found[int(rank[1])] = int(pid)
    return found


def seconds_to_go_on(run: Path, agent: "subprocess.Popen[str]", rank: int) -> float:
    """Kill a process and wait for a step that had not been made."""
    killed = ranks(agent.pid)
    os.kill(killed[rank], signal.SIGKILL)
    clock, reached = time.monotonic(), last_step(run)
    while last_step(run) <= reached or ranks(agent.pid).keys() != killed.keys():
        assert agent.poll() is None, agent.communicate()
        assert time.monotonic() - clock < 120
        time.sleep(0.05)
    assert not set(ranks(agent.pid).values()) & set(killed.values())
    return time.monotonic() - clock


def test_a_killed_process_is_started_again_and_the_run_is_that_without(tmp_path):
    agents = [
        subprocess.Popen(
            [*torchrun("--max-restarts", "3"), "train-teacher", *tiny_arguments(tmp_path / name, **SETTINGS)],
            env={**os.environ, **ON_CPU},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("whole", "killed")
    ]
    whole, killed = (tmp_path / name / "digits" for name in ("whole", "killed"))
    wait_for_checkpoint(killed)
    seconds = [seconds_to_go_on(killed, agents[1], rank) for rank in (1, 0)]
    print(f"seconds from kill -9 to the next step: {seconds}")
    assert max(seconds) < 60
    outputs = [agent.communicate(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert outputs[1][0].count("continues at step") == 2
    traces = [[(each["step"], each["loss"]) for each in log(run, "teacher")] for run in (whole, killed)]
    assert traces[0] == traces[1]
    names = "unet/diffusion_pytorch_model.safetensors"
    assert (whole / "teacher" / names).read_bytes() == (killed / "teacher" / names).read_bytes()
