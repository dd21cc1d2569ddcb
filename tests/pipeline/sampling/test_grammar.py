"""A sampler's name and its parts."""

import pytest

from fewstep.pipeline.sampling.grammar import SOLVERS, SamplerName, parse, parse_own
from fewstep.teachers import solvers


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("teacher@dpmsolver++:20", ("teacher", "dpmsolver++", 20)),
        ("student@4", ("student", None, 4)),
        ("ect-2@1", ("ect-2", None, 1)),
        ("runs/a@b/teacher@ddim:50", ("runs/a@b/teacher", "ddim", 50)),
        ("org/model@25", ("org/model", None, 25)),
    ],
)
def test_a_name_is_its_parts_and_back(text, parts):
    name = parse(text)
    assert name == SamplerName(*parts)
    assert name is not None
    assert str(name) == text
    assert name.kind == ("teacher" if parts[0] == "teacher" else "student")


@pytest.mark.parametrize(
    "text", ["", "@1", "student", "student@", "student@0", "x@ddim:", "x@:5", "x@DDIM:5", "x@1234567"]
)
def test_what_is_no_name_has_no_parts(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "text", ["teacher@4", "teacher@euler:4", "student@3", "student@ddim:4", "student@16", "nonsense"]
)
def test_of_a_run_only_a_teacher_has_solvers_and_students_few_steps(text):
    with pytest.raises(ValueError, match=text):
        parse_own(text)


def test_the_solvers_that_can_be_named_are_those_that_there_are():
    assert tuple(solvers.SOLVERS) == SOLVERS
