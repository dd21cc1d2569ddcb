"""Names that are no text, too long or links to themselves, pipes and devices: nothing is echoed raw or waited for."""

import os
import subprocess
import sys

import pytest

from fewstep.errors import LONGEST, UserError, printable
from fewstep.files import check_form, read_bounded, read_json
from fewstep.pipeline.cli.main import main

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
RUNS = ("run", "x"), ("benchmark", "x"), ("sample", "x", "-o", "out"), ("report", "x"), ("rate", "x")
FILES = (
    ("rate", "--collect", "x"),
    ("benchmark", "--against", "x"),
    ("run", "--eval.extractor", "inception", "--eval.images", "3000", "--eval.weights", "x"),
    ("benchmark", "a", "--eval.reference", "x"),
    ("reference", "parquet:x", "-o", "r.safetensors"),
    ("reference", "imagefolder:x", "-o", "r.safetensors"),
)


def line(capsys, arguments, path):
    """What a command says to a path in the place of x, which must be one printable line, with exit code 2."""
    code = main([argument.replace("x", path) if argument.endswith("x") else argument for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2
    assert all(each.startswith("data: reading ") and each.isprintable() for each in out.splitlines())
    assert err.count("\n") == 1
    assert err.removesuffix("\n").isprintable()
    return err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", [*RUNS, *FILES])
@pytest.mark.parametrize(
    "path", [f"{ESCAPE}.yaml", "a\nb/c", "a" * 255, "a" * 300, "b/" * 2500, "\udcff\udcfe", "‮gpj.exe", "loop/a"]
)
def test_a_strange_path_is_one_printable_line_whatever_the_command(capsys, here, arguments, path):
    (here / "loop").symlink_to("loop")
    assert "\x1b" not in line(capsys, arguments, path)
    assert sorted(os.listdir(here)) == ["loop"]


@pytest.mark.parametrize("arguments", [*RUNS, *FILES])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".yaml", ".parquet"])
def test_a_pipe_a_device_or_a_folder_is_not_waited_for(capsys, here, arguments, kind, suffix):
    path = here / f"x{suffix}"
    {"pipe": os.mkfifo, "device": lambda at: at.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    line(capsys, arguments, str(path))


@pytest.mark.parametrize("name", ["config.json", "data.json", "eval/benchmark.json", "teacher/manifest.json"])
def test_a_pipe_inside_a_run_s_folder_is_not_waited_for(capsys, here, name):
    (here / "x" / name).parent.mkdir(parents=True)
    os.mkfifo(here / "x" / name)
    for arguments in (("report", "x"), ("rate", "x")):
        line(capsys, arguments, str(here / "x"))


def test_a_file_that_may_not_be_read_is_one_line(capsys, here):
    (here / "x.json").write_text("{}")
    (here / "x.json").chmod(0)
    if os.access(here / "x.json", os.R_OK):
        pytest.skip("this user may read everything")
    line(capsys, ("rate", "--collect", "x"), "x.json")


def test_bytes_that_are_no_text_as_an_argument_of_a_process_are_one_line(here):
    command = [os.fsencode(sys.executable), b"-m", b"fewstep.pipeline", b"report", b"\xff\xfe"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert (
        done.stderr
        == b"fewstep: error: argument: '\\udcff\\udcfe': is not UTF-8 text: give the file or folder another name\n"
    )


def test_messages_are_one_printable_line_of_bounded_length():
    for text in (ESCAPE, "a\nb\rc\x85d\u2028e", "\ud800", "\u202e", "\0", "a" * 10**6):
        error = UserError(f"where {text}", text, f"remedy {text}")
        assert str(error).isprintable()
        assert len(str(error)) <= LONGEST
    loop: list[object] = []
    loop.append(loop)
    for value in (10**5000, loop):
        assert str(UserError("where", value, "remedy")).endswith("remedy")


@pytest.mark.parametrize(("text", "shown"), [("é ≤ 字", "é ≤ 字"), ("\x1b[0m", "\\x1b[0m"), ("\udcff", "\\udcff")])
def test_text_is_shown_as_it_is_and_controls_are_spelt_out(text, shown):
    assert printable(text) == shown


def test_what_is_said_on_the_terminal_is_printable(capsys):
    from fewstep.progress import say

    say(f"one {ESCAPE}\ntwo \udcff")
    assert capsys.readouterr().out == "one \\x1b]0;owned\\x07\\x1b[31m\ntwo \\udcff\n"


def test_a_file_is_read_up_to_a_length_and_not_beyond(tmp_path, refused):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a", 5) == b"12345"
    with refused("is longer than 4 bytes"):
        read_bounded(tmp_path / "a", 4)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 110 + "]" * 110, '{"a":' * 200 + "1" + "}" * 200, "9" * 5000])
def test_json_without_measure_is_one_line(tmp_path, refused, text):
    (tmp_path / "a.json").write_text(text)
    with refused():
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("value", "form", "says"),
    [
        ({"a": 1}, {"a": str}, "a is int"),
        ({"a": True}, {"a": int}, "a is bool"),
        ({"a": float("nan")}, {"a": float}, "a is float"),
        ({"a": 10**400}, {"a": float}, "a is int"),
        ({}, {"a": int}, "it has no 'a'"),
        ([], {"a": int}, "it is no JSON object"),
        ({"a": {"b": 1}}, {"a": [int]}, "a is no list"),
        ({"a": [1, "x"]}, {"a": [int]}, "a[1] is str"),
        ({"k": {"m": None}}, {str: {"m": float}}, "k.m is NoneType"),
        ({"a": 3}, {"a": (None, str)}, "a is int"),
    ],
)
def test_a_value_of_another_form_is_named(refused, value, form, says):
    with refused(says):
        check_form("x.json", value, form)


def test_a_value_of_the_form_passes():
    form = {"a": (None, [float]), "b": {str: {"c": int}}, "d": object}
    check_form("x.json", {"a": None, "b": {}, "d": [], "more": 1}, form)
    check_form("x.json", {"a": [1, 2.5], "b": {"x": {"c": 3}}, "d": None}, form)
