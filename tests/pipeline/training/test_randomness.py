"""Randomness depends on its key alone; the data are passed in a new order every epoch, without a break."""

import ast
import re
from pathlib import Path

import pytest
import torch

from fewstep.pipeline.training import randomness
from fewstep.pipeline.training.randomness import Stream, batch_indices, key, keyed_generator

NAMES = {
    "ORDER": "order",
    "FLIP": "flip",
    "FILES": "files",
    "WINDOW": "window",
    "TEACHER": "teacher",
    "TEACHER_WEIGHTS": "teacher-weights",
    "TRAJECTORIES": "trajectories",
    "TRAINING_NUMBER": "training",
    "REFIT": "refit",
    "TRUSTED": "trusted",
    "CONVERSION": "conversion",
}
"""Streams of earlier versions: with another name, a seed would no longer give the numbers that it gave."""


def test_keys_differ_by_seed_stream_step_and_slice():
    keys = [
        key(seed, stream, step, part)
        for seed in range(3)
        for stream in map(Stream, ("teacher", "student", "teacher-dropout", "flip"))
        for step in range(40)
        for part in range(4)
    ]
    # 1,920 keys of 32 bits: two agree by chance with probability 4e-4, and the keys are the same in every run
    assert len(set(keys)) == len(keys)
    assert all(0 <= value < 2**32 for value in keys)


def test_counters_are_not_run_together():
    assert key(1, Stream("a"), 1, 23) != key(1, Stream("a"), 12, 3)
    assert key(1, Stream("a"), 2) != key(12, Stream("a"))


def test_a_keyed_generator_repeats_itself_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first, again = (torch.rand(8, generator=keyed_generator(5, randomness.TEACHER, 7, 1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(8, generator=keyed_generator(5, randomness.TEACHER, 7, 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_every_epoch_is_a_permutation_without_a_gap_between_epochs():
    images, batch = 37, 8
    order = torch.cat([batch_indices(3, images, batch, step) for step in range(3 * images // batch + 1)])
    epochs = [order[epoch * images : (epoch + 1) * images] for epoch in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(images))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_a_batch_larger_than_the_data_spans_epochs():
    indices = batch_indices(0, 5, 12, 0)
    assert torch.bincount(indices[:5], minlength=5).tolist() == [1] * 5
    assert torch.bincount(indices[5:10], minlength=5).tolist() == [1] * 5


def test_a_batch_depends_on_seed_and_step_not_on_earlier_calls():
    later = batch_indices(3, 37, 8, 9)
    batch_indices(3, 37, 8, 0)
    torch.manual_seed(1)
    assert torch.equal(later, batch_indices(3, 37, 8, 9))
    assert not torch.equal(later, batch_indices(4, 37, 8, 9))


def test_streams_have_the_names_that_they_always_had():
    assert {name: value for name, value in vars(randomness).items() if name.isupper()} == NAMES
    assert key(0, randomness.TEACHER, 3, 1) == 3158345057


@pytest.mark.parametrize(
    ("student", "names"),
    [
        ("student", ("student", "student-regression", "refit", "student-dropout")),
        ("b", ("students.b", "students.b-regression", "refit, b", "students.b-dropout")),
    ],
)
def test_streams_of_a_student_have_them_too(student, names):
    training = randomness.training_stream(student)
    found = training, randomness.regression_stream(student), randomness.conversion_stream(randomness.REFIT, student)
    assert (*found, randomness.dropout_stream(training)) == names


def named_elsewhere(tree):
    """Lines that make a stream, or key a draw by anything but a name or a call of the table."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("key", "keyed_generator") and len(node.args) > 1:
            if not re.fullmatch(r"[A-Z_]+|(job|self)\.stream|\w+_stream\([\w., ]*\)", ast.unparse(node.args[1])):
                yield node.lineno
        elif called.split(".")[-1] == "Stream":
            yield node.lineno


def test_no_stream_is_named_outside_of_the_table(root: Path):
    files = [path for path in (root / "pipeline").rglob("*.py") if path.name != "randomness.py"]
    trees = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    assert {name: lines for name, tree in trees.items() if (lines := [*named_elsewhere(tree)])} == {}


@pytest.mark.parametrize(
    "code",
    [
        'key(seed, "flip", 1)',
        'keyed_generator(job.seed, f"{job.title}-dropout", 1)',
        "keyed_generator(job.seed, job.title, 1)",
        'keyed_generator(seed, NAME + "-x")',
        'Stream("new")',
    ],
)
def test_each_way_to_name_one_elsewhere_is_seen(code):
    assert [*named_elsewhere(ast.parse(code))] == [1]
