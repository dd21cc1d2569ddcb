"""Training in two processes: equal to one, stopped together, continued with another number of them."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from fewstep.errors import UserError
from fewstep.pipeline.training.checkpoint import list_checkpoints
from fewstep.pipeline.training.processes import join
from small_training import Denoising, NowAndThen

STEPS = 12  # of the job in small_training.py


TWO = """
import os, signal, sys
import torch
from pathlib import Path
import small_training
from accelerate import Accelerator
from fewstep.pipeline.training.loop import train
training = small_training.Training(Path(sys.argv[1]), slices=2)
accelerator = Accelerator(cpu=True)
def after(step):
    if accelerator.process_index == 1 and step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)
try:
    train(getattr(small_training, sys.argv[3])(after), training.job, accelerator)
except SystemExit as left:
    print(f"process {accelerator.process_index} left with {left.code}", flush=True)
accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
"""


def two_processes(folder, training, signalled_after=0, objective="Denoising"):
    """Train `training` with two processes of one slice each; the second gets SIGTERM after a step, 0 for none."""
    script = folder / "two.py"
    script.write_text(textwrap.dedent(TWO))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tests = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [*launch, str(script), str(training.job.checkpoints.parent), str(signalled_after), objective],
        env={**os.environ, "PYTHONPATH": tests, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # two processes of half a minute of imports between them
@pytest.mark.timeout(600)
@pytest.mark.parametrize("objective", [Denoising, NowAndThen])
def test_two_processes_equal_one_that_accumulates_two_slices(training, tmp_path, objective):
    one, two = training("one", slices=2), training("two", slices=2)
    one.run(objective())
    two_processes(tmp_path, two, objective=objective.__name__)
    mine, theirs = (load_file(run.checkpoint(STEPS) / "objective.safetensors") for run in (one, two))
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-7)
    assert [record["loss"] for record in one.trace()] == pytest.approx([record["loss"] for record in two.trace()])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_to_one_process_of_two_ends_both_and_loses_nothing(training, tmp_path):
    whole, stopped = training("whole", slices=2), training("stopped", slices=2)
    two_processes(tmp_path, whole)
    out = two_processes(tmp_path, stopped, signalled_after=4)
    assert "process 0 left with 143" in out
    assert "process 1 left with 143" in out
    newest = list_checkpoints(stopped.job.checkpoints)[-1]
    assert newest in (stopped.checkpoint(4), stopped.checkpoint(5))  # all agree once a step, in the middle of it
    two_processes(tmp_path, stopped)
    assert stopped.hashes(STEPS) == whole.hashes(STEPS)
    assert stopped.trace() == whole.trace()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_number_of_processes(training, tmp_path):
    whole, fewer, more = (training(name, slices=2) for name in ("whole", "fewer", "more"))
    whole.run()
    two_processes(tmp_path, fewer, signalled_after=4)
    fewer.run()
    more.run(interrupted_at=5)
    two_processes(tmp_path, more)
    for run in (fewer, more):
        mine, theirs = (load_file(each.checkpoint(STEPS) / "ema.safetensors") for each in (whole, run))
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-7)
        assert [record["step"] for record in run.trace()] == [record["step"] for record in whole.trace()]
        losses = [[record["loss"] for record in each.trace()] for each in (whole, run)]
        assert losses[1] == pytest.approx(losses[0])


@pytest.mark.parametrize(("cpu", "reason"), [(True, "this run is on a CPU"), (False, "DDP")])
@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_weights_are_not_shared_out_among_processes(monkeypatch, name, cpu, reason):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"accelerate: '{name}': .*{reason}"):
        join(cpu=cpu)
