"""Presets, YAML files and overrides become one Config; a fault in a file is one line that names it."""

import pytest

from fewstep.errors import UserError
from fewstep.pipeline.config.reading import config_yaml, load_config


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_starts_from_a_preset_and_overrides_come_last(tmp_path):
    path = write(tmp_path, "preset: digits\nname: mine\nstudent:\n  method: ect\n  train.kimg: 50\n")
    config = load_config(path, {"student.train.kimg": "40", "student.train.learning_rate": "1e-4"})
    assert (config.name, config.students["student"].method.name) == ("mine", "ect")
    train = config.students["student"].train
    assert (train.kimg, train.learning_rate) == (40.0, 1e-4)
    assert config.teacher == load_config("digits").teacher


def test_a_complete_file_needs_no_preset_and_printing_it_gives_it_back(tmp_path):
    config = load_config("cifar10", {"eval.weights": "/w.pth", "seed": 7})
    assert load_config(write(tmp_path, config_yaml(config))) == config


def test_exponents_without_a_point_are_numbers(tmp_path):
    path = write(tmp_path, "preset: digits\nteacher: {train: {learning_rate: 1e-3}}\n")
    assert load_config(path).to_dict()["teacher"]["train"]["learning_rate"] == 1e-3


def test_null_clears_an_optional_key():
    assert load_config("mnist", {"data.image_size": "null"}).data.image_size is None
    assert load_config("mnist", {"data.image_size": None}).data.image_size is None


def test_a_missing_required_key_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^data\.source: is required .* `preset: digits`"):
        load_config(write(tmp_path, "name: mine\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("preset: digits\nsede: 3\n", "mine.yaml: sede: 3: no such key; did you mean seed?"),
        ("preset: digits\nstudent: {refit_step: 3}\n", "did you mean student.refit_steps?"),
        ("preset: digits\ndoublings: 3\n", "did you mean student.method.doublings?"),
        ("preset: digits\nstudent: cd\n", "is a section: give its keys"),
        ("preset: digits\nseed: [1]\n", "mine.yaml: seed: [1]: must be a whole number"),
        ("preset: digits\nseed: true\n", "mine.yaml: seed: True: must be a whole number"),
        ("preset: digits\nseed:\n", "mine.yaml: seed: 'null': must be a whole number"),
        ("preset: digits\nseed: {a: 1}\n", "mine.yaml: seed: {'a': 1}: must be a whole number"),
        ("preset: digits\n7: 3\n", "mine.yaml: 7: 3: no such key"),
        ("preset: digit\n", "mine.yaml: preset: 'digit': must be one of digits, cifar10"),
        ("preset: [digits]\n", "mine.yaml: preset: ['digits']: must be one of"),
        ("preset: digits\nseed: 1\nseed: 2\n", "key 'seed' stands twice, line 3"),
        ("preset: digits\nstudent: {method: cd}\nstudent.method: ect\n", "stands twice"),
        ("preset: digits\nseed: 3\nseed.a: 4\n", "seed has a value of its own"),
        ("seed: [1\n", "is not readable as YAML"),
        ("{" * 5000, "nested more than 20 deep"),
        ("[" * 5000, "nested more than 20 deep"),
        ("seed: !!python/object/apply:os.system ['touch pwned']\n", "is not readable as YAML"),
        ("a: &a [1]\nb: *a\n", "aliases"),
        ("? [1, 2]\n: 3\n", "mine.yaml"),
        ("- digits\n", "must hold `key: value` lines"),
        ("", "must hold `key: value` lines"),
        ("seed: 1\n---\nseed: 2\n", "is not readable as YAML"),
        (b"\xff\xfe\x00", "mine.yaml"),
        ("seed: \x00", "is not readable as YAML"),
        ("seed: !!int\n", "is not readable as YAML"),
        ("a" * 1_000_001, "is longer than 100,000 bytes"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("digit", "preset: 'digit': not one of digits, cifar10, ddpm-cifar10, digits-conditional, "),
        ("", "preset: '': not one of"),
        ("nope.yaml", "nope.yaml: no such YAML file"),
        ("no/such", "no/such: no such YAML file"),
        ("/", "/: is a folder: give a YAML file"),
    ],
)
def test_an_unknown_source_lists_the_presets_or_names_the_file(source, says):
    with pytest.raises(UserError) as caught:
        load_config(source)
    assert str(caught.value).startswith(says)


def test_long_values_are_shortened_in_the_message():
    with pytest.raises(UserError) as caught:
        load_config("digits", {"seed": "9" * 5000})
    assert len(str(caught.value)) < 200
