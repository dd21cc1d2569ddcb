"""Preset, file and command line as layers: several students, methods, and teachers from elsewhere."""

import json

import pytest

from fewstep.errors import UserError
from fewstep.pipeline.config.reading import config_from_dict, config_yaml, load_config
from fewstep.pipeline.config.teacher import LoadedTeacher
from fewstep.students.methods.cd import CD
from fewstep.students.methods.cmt import CMT
from fewstep.students.methods.ect import ECT

TWO = """preset: digits
student: {method: {name: cd, doublings: 3}, train.kimg: 50}
students:
  cd:
  ect: {method: ect, sigma_max: 60.0}
"""


@pytest.fixture
def two(tmp_path):
    """A file of two students over the digits preset."""
    (tmp_path / "two.yaml").write_text(TWO)
    return tmp_path / "two.yaml"


def test_without_students_there_is_one_called_student():
    config = load_config("digits")
    assert list(config.students) == ["student"]
    assert config.students["student"].method == CMT()
    assert list(config.to_dict())[-2:] == ["student", "eval"]


def test_a_named_student_takes_what_it_does_not_say_from_student(two):
    students = load_config(two).students
    assert list(students) == ["cd", "ect"]
    assert students["cd"].method == CD(doublings=3)
    assert students["ect"].method == ECT()  # the doublings of student are those of its method
    assert (students["cd"].noise_range, students["ect"].noise_range) == ((0.002, 80.0), (0.002, 60.0))
    assert {student.train.kimg for student in students.values()} == {50.0}
    assert students["cd"].train.batch_size == load_config("digits").students["student"].train.batch_size


def test_a_higher_layer_s_student_goes_over_all_and_its_students_over_that(two):
    given = {"student.sigma_max": "70", "students.ect.train.kimg": "9", "student.method.doublings": "1"}
    students = load_config(two, given).students
    assert [student.sigma_max for student in students.values()] == [70.0, 70.0]
    assert [student.train.kimg for student in students.values()] == [50.0, 9.0]
    assert [getattr(student.method, "doublings", None) for student in students.values()] == [1, 1]
    assert load_config(two, {"students.third.method": "ect"}).students["third"].method == ECT()


def test_another_method_drops_the_finish_of_the_one_before():
    finish = [
        load_config("digits", given).students["student"].matching is not None
        for given in (
            {},
            {"student.method": "cmt"},
            {"student.method": "ect"},
            {"student.method": "ect", "student.matching.weight": "1"},
            {"student.matching": "null"},
        )
    ]
    assert finish == [True, True, False, True, False]
    students = load_config("digits", {"students.cmt.train.kimg": "9", "students.ect.method": "ect"}).students
    assert [student.matching is not None for student in students.values()] == [True, False]


@pytest.mark.parametrize(("method", "why"), [("dmd", "matches by itself"), ("pd", "trains no consistency model")])
def test_a_matching_finish_goes_with_no_method_that_matches_itself_or_trains_no_consistency_model(method, why):
    given = {"student.matching.weight": "0.1"}
    assert load_config("digits", given).students["student"].matching is not None
    assert load_config("fashion-mnist", {"student.method": method}).students["student"].matching is None
    with pytest.raises(UserError, match=rf"student\.matching: student\.method {method} {why}"):
        load_config("digits", given | {"student.method": method})


def test_another_method_drops_the_settings_of_the_one_before(two):
    assert load_config("digits", {"student.method": "ect"}).students["student"].method == ECT()
    given = {"student.method": "cmt", "student.method.at_sigma_max": "0.5"}
    assert load_config("digits", given).students["student"].method == CMT(at_sigma_max=0.5)
    changed = load_config("digits", {"student.method": "ect", "student.method.doublings": "2"})
    assert changed.students["student"].method == ECT(doublings=2)
    assert all(student.method == ECT() for student in load_config(two, {"student.method": "ect"}).students.values())


def test_a_teacher_from_elsewhere_drops_the_training_settings_of_the_layers_below():
    config = load_config("digits", {"teacher.source": "runs/x/teacher"})
    assert config.teacher == LoadedTeacher(source="runs/x/teacher")
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(UserError) as caught:
        load_config("digits", {"teacher.source": "runs/x", "teacher.train.kimg": "3"})
    assert str(caught.value).startswith(
        "teacher.train: is of a teacher that is trained, and teacher.source is 'runs/x'"
    )


def test_a_trained_teacher_over_a_loaded_one_needs_its_settings(tmp_path):
    (tmp_path / "a.yaml").write_text("preset: digits\nteacher.source: runs/x\n")
    assert load_config(tmp_path / "a.yaml", {"teacher.source": "hub/id"}).teacher == LoadedTeacher(source="hub/id")
    with pytest.raises(UserError, match=r"^teacher\.prediction: is required"):
        load_config(tmp_path / "a.yaml", {"teacher.source": "train"})


def test_a_student_s_fault_is_named_by_its_own_key_and_file(two):
    with pytest.raises(UserError, match=r"^students\.cd\.sigma_min: 90\.0: must be less than students\.cd\.sigma_max"):
        load_config(two, {"students.cd.sigma_min": "90"})
    two.write_text(TWO + "  bad: {refit_steps: -1}\n")
    with pytest.raises(UserError, match=r"two\.yaml: students\.bad\.refit_steps: -1: must be a whole number"):
        load_config(two)
    two.write_text(TWO + "  cd: {}\n")
    with pytest.raises(UserError, match="key 'cd' stands twice, line 6"):
        load_config(two)


@pytest.mark.parametrize("name", ["", "Cd", "-a", "a_b", "a" * 41, "teacher", "é"])
def test_a_student_s_name_must_name_a_folder(name):
    with pytest.raises(UserError, match="must be 1 to 40 of a-z, 0-9"):
        config_from_dict(load_config("digits").to_dict() | {"students": {name: {}}})


def test_what_is_printed_reads_back(two, tmp_path):
    config = load_config(two, {"eval.samplers": "[teacher@ddim:5, student@2, ect@1]", "seed": 7})
    (tmp_path / "printed.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "printed.yaml") == config
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_student_in_a_sampler_s_name_stands_for_every_student(two):
    config = load_config(two, {"eval.samplers": "[teacher@ddim:5, student@2, ect@1]"})
    assert [str(name) for name in config.samplers] == ["teacher@ddim:5", "cd@2", "ect@2", "ect@1"]
    assert [name.kind for name in config.samplers] == ["teacher", "student", "student", "student"]
    with pytest.raises(UserError, match=r"^eval\.samplers: 'tcm@1': no student is called tcm: give one of cd, ect"):
        load_config(two, {"eval.samplers": "[tcm@1]"})
    with pytest.raises(UserError, match=r"^eval\.samplers: .*: ect@1 stands there twice"):
        load_config(two, {"eval.samplers": "[student@1, ect@1]"})
