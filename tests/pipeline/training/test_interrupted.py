"""A run that is told to stop, in training and in evaluation: it saves, leaves as asked, and goes on later."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fewstep.pipeline.cli.main import main

pytestmark = pytest.mark.timeout(600)


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "fewstep.pipeline", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(process, log, count):
    """Wait until `log` has `count` lines; fail when the process ends before."""
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_training_stops_on_sigterm_and_on_ctrl_c_and_goes_on(tiny, tmp_path, capsys):
    arguments = ["train-teacher", *tiny(tmp_path, teacher__train__kimg=2.4, teacher__train__checkpoint_kimg=1)]
    log = tmp_path / "digits" / "logs" / "teacher.jsonl"
    reached = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(arguments)
        wait_for_lines(process, log, reached + 3)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        assert "Traceback" not in err
        assert "the same command continues there" in out
        assert (f"continues at step {reached} of 75" in out) == (reached > 0)
        reached = len(log.read_text().splitlines())
        assert (tmp_path / "digits" / "checkpoints" / "teacher" / f"step-{reached:09d}").is_dir()
        assert not (tmp_path / "digits" / "teacher").exists()
    assert main(arguments) == 0
    assert f"continues at step {reached} of 75" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 76))
    assert (tmp_path / "digits" / "teacher" / "manifest.json").exists()


@pytest.mark.parametrize(("number", "left", "code"), [(signal.SIGTERM, SystemExit, 143), (signal.SIGINT, None, 130)])
def test_evaluation_stops_at_once_and_measures_only_the_rest_later(
    tiny, tiny_run, tmp_path, capsys, monkeypatch, number, left, code
):
    shutil.copytree(tiny_run, tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits" / "eval")
    arguments, judged = ["benchmark", *tiny(tmp_path)], []
    from fewstep.eval.quality.judge import Judge

    judge = Judge.__call__

    def interrupted(*given):
        judged.append(1)
        if len(judged) == 4:  # two seed blocks of the first sampler and one of the second are kept
            os.kill(os.getpid(), number)
        return judge(*given)

    monkeypatch.setattr(Judge, "__call__", interrupted)
    if left is None:
        assert main(arguments) == code
    else:
        with pytest.raises(left) as stopped:
            main(arguments)
        assert stopped.value.code == code
    assert not (tmp_path / "digits" / "eval").exists()
    assert not list((tmp_path / "digits").glob(".eval*"))
    capsys.readouterr()
    judged[:] = [1] * 10
    assert main(arguments) == 0
    assert len(judged) == 13  # three of the six were measured already
    assert (tmp_path / "digits" / "eval" / "benchmark.json").exists()
