"""Configurations: values, YAML and command lines that nobody sane writes."""

import os
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.keys import config_keys
from fewstep.pipeline.config.reading import config_from_dict, file_layers, load_config
from fewstep.pipeline.sampling.grammar import parse

SECONDS = 10  # for any one input
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.just(10**4000))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
PIECES = st.sampled_from(
    ["&a ", "*a", "[", "]", "{", "}", ": ", "- ", "\n", " ", "!!int ", "|", ">", "? ", "'", '"', "1", "a"]
)


def doubling(times):
    """The billion laughs: each list holds eight of the one before."""
    rest = "".join(f", &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, times))
    return f"[&a0 [1, 1]{rest}]"


def in_time(borne, call):
    """Run what must end soon, with a UserError or without."""
    began = time.monotonic()
    with borne():
        call()
    assert time.monotonic() - began < SECONDS


@given(st.sampled_from(list(config_keys())), VALUES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_any_key_is_taken_or_costs_one_line(borne, key, value):
    in_time(borne, lambda: load_config("digits", {key: value}))


@given(st.sampled_from(list(config_keys())), st.lists(PIECES).map("".join))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_that_looks_like_yaml_is_taken_or_costs_one_line(borne, key, text):
    in_time(borne, lambda: load_config("digits", {key: text}))


@given(st.dictionaries(st.text() | st.sampled_from(["data", "teacher", "seed", "data.source"]), VALUES))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_dictionary_is_a_configuration_or_costs_one_line(borne, nested):
    in_time(borne, lambda: config_from_dict(nested))


@given(st.one_of(st.binary(), st.lists(PIECES).map(lambda parts: "".join(parts).encode())))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_yaml_file_cost_one_line_at_most(tmp_path, borne, data):
    (tmp_path / "any.yaml").write_bytes(data)
    in_time(borne, lambda: file_layers(tmp_path / "any.yaml"))


@pytest.mark.parametrize("key", ["seed", "name", "teacher.network.channels", "eval.latency_seconds", "data.image_size"])
@pytest.mark.parametrize("text", [doubling(12), "&a [*a]", "[" * 3000, "{a: " * 500, ":".join(["1"] * 3000) + ".5"])
def test_a_bomb_in_a_value_is_refused_before_it_is_read(refused, key, text):
    began = time.monotonic()
    with refused():
        load_config("digits", {key: text})
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"name: {doubling(12)}", "aliases"),
        ("a: &a {b: *a}", "aliases"),
        ("[" * 50_000, "nested more than 20 deep"),
        ("- " * 40_000, "nested more than 20 deep"),
        ("seed: 1\n" * 20_000, "longer than 100,000 bytes"),
        ("seed: !!python/object/apply:os.mkdir [ran]", "could not determine a constructor"),
        ("seed: 1\nseed: 2", "stands twice"),
        ("seed: 2001-99-99", "month must be in 1..12"),
        (f"seed: {'9' * 5000}", "not readable as YAML"),
        ("name: \x00", "not readable as YAML"),
        ("eval.latency_seconds: .nan\npreset: digits", "must be a number"),
        ("teacher.train.batch_size: 0x" + "f" * 4000 + "\npreset: digits", "must be a whole number"),
    ],
)
def test_a_hostile_yaml_file_is_refused_in_one_line(tmp_path, monkeypatch, refused, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    began = time.monotonic()
    with refused(says):
        load_config(tmp_path / "x.yaml")
    assert time.monotonic() - began < SECONDS
    assert not (tmp_path / "ran").exists()


@given(st.text() | st.from_regex(r"(teacher|student)@[a-z+]*:?[0-9]*", fullmatch=True))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_as_a_sampler_is_one_or_costs_one_line(borne, text):
    in_time(borne, lambda: parse(text))


COMMANDS = st.sampled_from(
    ["run", "train-teacher", "distill", "benchmark", "reference", "sample", "rate", "report", "x"]
)
WORDS = st.one_of(
    st.text(max_size=20).filter(lambda text: "\0" not in text),
    st.sampled_from(
        ["digits", "-o", "--out", "--num", "--steps", "--seed", "--collect", "--against", "--bound", "--eval.images"]
    ),
    st.sampled_from(
        ["a.npz", "b.pt2@3", ".", "/", "1", "-1", "nan", "1e999", "9" * 5000, "\udcff", "\x1b[31m", "a" * 5000]
    ),
)


@given(command=COMMANDS, words=st.lists(WORDS, max_size=5))
@example(command="report", words=["."])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_command_line_ends_with_0_or_with_one_line_and_2(tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    configured = command in ("run", "train-teacher", "distill", "benchmark")
    code = main([command, *words, *(["--print_config"] if configured else [])])
    out, err = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 0) == (err == "")
    if code:
        assert out == ""
        assert err.count("\n") == 1
        assert err.removesuffix("\n").isprintable()
    assert not os.listdir(tmp_path)
