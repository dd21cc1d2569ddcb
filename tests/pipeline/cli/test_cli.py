"""The command line: help is quick; a fault of the user's is one line, exit code 2, and nothing written."""

import errno
import os
import subprocess
import sys
import time
from types import ModuleType

import pytest
import yaml

from fewstep.errors import UserError
from fewstep.pipeline.cli.main import COMMANDS, main
from fewstep.pipeline.config.keys import config_keys
from fewstep.pipeline.config.reading import load_config


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "fewstep.pipeline", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
    )


def refused(capsys, *arguments):
    """The one line on stderr of a command that must fail with exit code 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("fewstep: error: ")
    return err.removeprefix("fewstep: error: ").strip()


@pytest.fixture
def stub(monkeypatch):
    """Stand-ins for the modules behind the commands; returns the calls that they received."""
    calls = []
    for name, module in (("run", "stages.run"), ("sample", "sampling.sample")):
        stand_in = ModuleType(f"fewstep.pipeline.{module}")
        stand_in.run = lambda *given: calls.append(("run", *given))  # type: ignore[attr-defined]
        stand_in.report = lambda *given: calls.append(("report", *given))  # type: ignore[attr-defined]
        stand_in.sample_to_folder = lambda *given: calls.append(("sample", *given))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
        monkeypatch.setattr(f"fewstep.pipeline.{module.partition('.')[0]}.{name}", stand_in, raising=False)
    return calls


FAULTS = [
    (["benchmark", "--bound", "0.1"], "--bound: 0.1: is the bound of a comparison: give --against"),
    (["benchmark", "--against", "no.json"], "--against: 'no.json': no such file"),
    (["benchmark", "--against", "no.json", "--bound", "-1"], "--bound: '-1': must be a share of 0 or more"),
    (["runn"], "command: 'runn': no such command; did you mean run?"),
    (
        ["run", "digit"],
        "preset: 'digit': not one of digits, cifar10, ddpm-cifar10, digits-conditional, ",
    ),
    (["run", "nope.yaml"], "nope.yaml: no such YAML file"),
    (
        ["run", "--student.method.doubling", "3"],
        "student.method.doubling: 3: no such key; did you mean student.method.doublings?",
    ),
    (["run", "--doublings", "3"], "doublings: 3: no such key; did you mean student.method.doublings?"),
    (["run", "--student.method.guidance", "3"], "student.method.guidance: 3: no such key"),
    (
        ["run", "--teacher.source", "x", "--teacher.prediction", "epsilon"],
        "teacher.prediction: 'epsilon': is of a teacher",
    ),
    (["run", "--students.A.method", "ect"], "students: 'A': a student's name must be"),
    (["run", "--students.teacher.method", "ect"], "students: 'teacher': a student's name must"),
    (["run", "--students", "3"], "students: 3: is a section"),
    (["run", "--xyzzy", "1"], "xyzzy: 1: no such key; see --help for the keys"),
    (["run", "--data", "digits"], "data: 'digits': is a section: give its keys, such as data.source"),
    (["run", "--seed"], "seed: needs a value: --seed VALUE"),
    (["run", "--seed", "--device", "cpu"], "seed: needs a value: --seed VALUE"),
    (["run", "--seed", "x"], "seed: 'x': must be a whole number"),
    (["run", "--seed", "1", "--seed=2"], "seed: '2': is given twice: keep one"),
    (
        ["run", "--seed", "1", "mnist"],
        "argument: 'mnist': not understood: the preset or YAML file comes first",
    ),
    (["run", "-s", "1"], "argument: '-s': not understood"),
    (
        ["run", "--student.train.learning_rate", "-1e-3"],
        "student.train.learning_rate: -0.001: must be a number",
    ),
    (["distill", "--student.method", "x"], "student.method: 'x': must be one of cd, cmt"),
    (
        ["train-teacher", "--teacher.network.channels", "32,64"],
        "teacher.network.channels: '32,64': must be a list",
    ),
    (["benchmark", "--eval.images=-5"], "eval.images: -5: must be a whole number, at least 2"),
    (
        ["benchmark", "mnist", "--eval.weights", "no.pth"],
        "eval.weights: 'no.pth': no such file",
    ),
    (
        ["run", "mnist", "--eval.extractor", "dinov2", "--eval.weights", "no.pth"],
        "eval.weights: 'no.pth': no such file",
    ),
    (["sample"], "fewstep sample: the following arguments are required: RUN, -o/--out"),
    (["sample", "nowhere", "-o", "x"], "nowhere: no such run folder"),
    (["sample", ".", "-o", "x", "--num", "0"], "--num: '0': must be a whole number, at least 1"),
    (["sample", ".", "-o", "x", "--seed", "4096"], "--seed: '4096': must be a whole number, at least 0"),
    (["sample", ".", "-o", "x", "--steps", "3"], "--steps: invalid choice: 3"),
    (["sample", ".", "-o", "x", "--format", "gif"], "--format: invalid choice: 'gif'"),
    (["sample", ".", "-o", "x", "--labels", "a"], "--labels: 'a': must be a whole number"),
    (["sample", ".", "-o", "x", "--numb", "3"], "fewstep sample: unrecognized arguments: --numb 3"),
    (["report"], "fewstep report: the following arguments are required: RUN"),
    (["report", "nowhere"], "nowhere: no such run folder"),
    (["presets", "digits"], "digits: fewstep presets takes no arguments"),
]


@pytest.mark.parametrize(("arguments", "says"), FAULTS)
def test_a_wrong_call_is_one_line_and_writes_nothing(capsys, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments).startswith(says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "says"), [FAULTS[4], FAULTS[6], FAULTS[12]])
def test_a_wrong_call_from_the_shell(tmp_path, arguments, says):
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fewstep: error: {says}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_command_and_every_key_with_the_values_of_the_preset(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main(["run", "cifar10", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for key in config_keys():
        assert f"--{key} " in out
    assert "[128, 256, 256]" in out
    assert "split the networks learn from (text; train)" in out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command):
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 100


def test_help_is_quick():
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        assert run("run", "--help").returncode == 0
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1.5


def test_presets_lists_name_description_and_data(capsys):
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    for name in ("digits", "mnist", "fashion-mnist", "cifar10"):
        assert f"\n{name} " in f"\n{out}"
        assert f"data: {load_config(name).data.source}" in out


def test_print_config_prints_yaml_that_the_command_reads(capsys, tmp_path):
    assert main(["run", "mnist", "--seed", "5", "--print_config"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "mine.yaml"
    path.write_text(printed)
    assert yaml.safe_load(printed) == load_config("mnist", {"seed": 5}).to_dict()
    assert main(["run", str(path), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


def test_each_stage_command_hands_its_config_and_its_end(stub):
    for command, until in {
        "run": "report",
        "train-teacher": "teacher",
        "distill": "student",
        "benchmark": "evaluate",
    }.items():
        assert main([command, "mnist", "--seed=3"]) == 0
        assert stub.pop() == ("run", load_config("mnist", {"seed": "3"}), until)
    assert main(["run"]) == 0
    assert stub.pop() == ("run", load_config("digits"), "report")


def test_sample_and_report_hand_over_their_arguments(stub, tmp_path):
    arguments = ["sample", str(tmp_path), "-o", "out", "--num", "8", "--seed", "7", "--labels", "3", "5"]
    assert main(arguments) == 0
    name, folder, num, steps, seed, labels, out, form, student = stub.pop()
    assert (name, folder, num, steps, seed, labels) == ("sample", tmp_path, 8, 2, 7, [3, 5])
    assert (str(out), form, student) == ("out", "png", None)
    assert main(["report", str(tmp_path)]) == 0
    assert stub.pop() == ("report", tmp_path)


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (UserError("data.source", "x", "two\nlines"), "data.source: 'x': two lines"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "runs/digits: No space left on device: free some space",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            "/a/b: Permission denied: change its permissions",
        ),
    ],
)
def test_faults_inside_a_stage_are_one_line(capsys, stub, monkeypatch, raised, line):
    def broken(config, until):
        raise raised

    monkeypatch.setattr(sys.modules["fewstep.pipeline.stages.run"], "run", broken)
    assert refused(capsys, "run").startswith(line)


def test_an_interruption_is_130_and_a_bug_is_a_traceback(capsys, stub, monkeypatch):
    def interrupted(config, until):
        raise KeyboardInterrupt

    def wrong(config, until):
        raise {"bug": KeyError("k"), "file": FileNotFoundError(errno.ENOENT, "No such file", "f")}[config.name]

    monkeypatch.setattr(sys.modules["fewstep.pipeline.stages.run"], "run", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "fewstep: interrupted\n"
    monkeypatch.setattr(sys.modules["fewstep.pipeline.stages.run"], "run", wrong)
    with pytest.raises(KeyError):
        main(["run", "--name", "bug"])
    with pytest.raises(FileNotFoundError):
        main(["run", "--name", "file"])


def test_a_reader_that_leaves_early_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fewstep.pipeline", "run", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
