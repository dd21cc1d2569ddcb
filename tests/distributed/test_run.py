"""A whole run in two processes: the same as in one, ended together, taken up again, and what cannot go together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tiny_arguments

from fewstep.pipeline.cli.main import main
from several import (
    LONG,
    ON_CPU,
    SLICES,
    ended,
    log,
    losses,
    started,
    torchrun,
    wait_for_checkpoint,
    wait_for_steps,
    weights,
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A whole run by one process."""
    out = tmp_path_factory.mktemp("one")
    assert main(["run", *tiny_arguments(out, **SLICES)]) == 0
    return out / "digits"


@pytest.mark.slow
def test_two_processes_under_torchrun_give_what_one_gives(one, tmp_path):
    command = [*torchrun(), "run", *tiny_arguments(tmp_path, device="auto", **SLICES)]
    done = subprocess.run(command, env={**os.environ, **ON_CPU}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("teacher: done in") == 1
    two = tmp_path / "digits"
    for stage in ("teacher", "students/student"):
        assert losses(two, stage) == pytest.approx(losses(one, stage), rel=1e-5)
        mine, theirs = weights(one, stage), weights(two, stage)
        for name, value in mine.items():
            assert (theirs[name] - value).abs().max() < 1e-6, name
    found = [json.loads((run / "report" / "results.json").read_text())["samplers"] for run in (one, two)]
    for mine, theirs in zip(*found, strict=True):
        fd = [each["quality"]["metrics"]["fd"]["values"] for each in (mine, theirs)]
        assert fd[1] == pytest.approx(fd[0], rel=1e-4), mine["name"]
    assert not list(two.glob(".processes-*"))


@pytest.mark.slow
def test_two_processes_under_accelerate_launch_train_as_one_does(one, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "-m",
        "fewstep",
    ]
    command = [*launch, "train-teacher", *tiny_arguments(tmp_path, **SLICES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "digits") == pytest.approx(losses(one), rel=1e-5)
    uneven = {**SLICES, "teacher__train__slices": 1}
    done = subprocess.run([*launch, "train-teacher", *tiny_arguments(tmp_path / "1", **uneven)], capture_output=True)
    assert b"must be a multiple of the number of processes, 2" in done.stderr


@pytest.mark.slow
def test_weights_that_are_to_be_shared_out_are_refused_in_one_line(tmp_path):
    arguments = ["train-teacher", *tiny_arguments(tmp_path, **SLICES)]
    (code, _, errors), (other, _, quiet) = ended(
        started([arguments, arguments], own=[{"ACCELERATE_USE_FSDP": "true"}] * 2), 60
    )
    assert (code, other, quiet, errors.count("\n")) == (2, 2, "", 1), errors
    assert "FSDP" in errors


@pytest.mark.slow
def test_a_signal_to_one_ends_both_and_the_same_command_goes_on_in_one_process_too(tmp_path, capsys):
    arguments = ["train-teacher", *tiny_arguments(tmp_path, **LONG)]
    processes = started([arguments, arguments])
    wait_for_checkpoint(tmp_path / "digits")
    processes[1].send_signal(signal.SIGTERM)
    (code, said, _), (other, quiet, _) = ended(processes)
    assert (code, other, quiet) == (143, 143, "")
    assert "stopped after step" in said
    shorter = LONG | {"teacher__train__kimg": 64}
    process = subprocess.Popen([sys.executable, "-m", "fewstep", "train-teacher", *tiny_arguments(tmp_path, **shorter)])
    wait_for_steps(tmp_path / "digits")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    steps = [record["step"] for record in log(tmp_path / "digits", "teacher")]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other_with_the_reason_and_nothing_is_lost(tmp_path):
    arguments = ["train-teacher", *tiny_arguments(tmp_path, **LONG)]
    processes = started([arguments, arguments])
    wait_for_checkpoint(tmp_path / "digits")
    processes[1].kill()
    clock = time.monotonic()
    (code, _, errors), _ = ended(processes)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "another one of this run has ended" in errors
    assert time.monotonic() - clock < 10
    again = started([arguments, arguments])
    wait_for_steps(tmp_path / "digits")
    for process in again:
        process.send_signal(signal.SIGTERM)
    (code, said, _), _ = ended(again)
    assert code == 143
    assert "continues at step" in said


@pytest.mark.slow
def test_processes_that_cannot_go_together_are_one_line_and_gone(tmp_path):
    first = ["train-teacher", *tiny_arguments(tmp_path, **SLICES)]
    other = ["train-teacher", *tiny_arguments(tmp_path, **SLICES, seed=3)]
    uneven = ["train-teacher", *tiny_arguments(tmp_path, teacher__train__batch_size=31)]
    whole = ["train-teacher", *tiny_arguments(tmp_path, teacher__train__slices=1)]
    for arguments, fault in (
        ([first, other], "processes: differ in their configuration"),
        ([uneven, uneven], "teacher.train.batch_size: 31: cannot be shared by 2 processes"),
        ([whole, whole], "teacher.train.slices: 1: must be a multiple of the number of processes, 2"),
    ):
        (code, _, errors), (other_code, _, quiet) = ended(started(arguments), 60)
        assert (code, other_code) == (2, 2), errors + quiet
        assert fault in errors
        assert (errors.count("\n"), quiet) == (1, "")
        assert not (tmp_path / "digits" / "teacher").exists()


@pytest.mark.slow
def test_an_edited_copy_of_the_code_does_not_go_together_with_the_original(root, tmp_path):
    copy = tmp_path / "fewstep"
    shutil.copytree(root / "src" / "fewstep", copy)
    for name in ("eval", "pipeline", "students", "teachers"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "teachers" / "solvers.py", "a") as file:
        file.write("\n")
    arguments = ["train-teacher", *tiny_arguments(tmp_path / "out", **SLICES)]
    (code, _, errors), (other, _, quiet) = ended(
        started([arguments, arguments], own=[{}, {"PYTHONPATH": str(tmp_path)}]), 60
    )
    assert (code, other, quiet) == (2, 2, ""), quiet
    assert errors == "fewstep: error: processes: differ in their code of fewstep: start all with the same\n"


@pytest.mark.slow
def test_a_port_that_is_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        arguments = ["train-teacher", *tiny_arguments(tmp_path, **SLICES)]
        processes = started([arguments, arguments], taken.getsockname()[1])
        code, _, errors = ended(processes[:1], 60)[0]
        processes[1].kill()  # it waits for whoever holds the port to answer
        ended(processes[1:], 10)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "cannot meet there" in errors
