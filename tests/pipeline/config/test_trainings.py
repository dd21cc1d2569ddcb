"""Several trainings of a student: their names, their samplers, and the preset that compares methods by them."""

from typing import Any, get_args

import pytest

from fewstep.errors import UserError
from fewstep.pipeline.config.reading import load_config
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.ddim import ddim_student
from fewstep.students.methods import Method
from fewstep.students.methods.cmt import CMT
from fewstep.students.methods.pd import PD
from fewstep.students.trajectories import Trajectories
from fewstep.teachers.interfaces import Evaluations
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler

TWO = {"students.cd.training_seeds": 2, "students.ect.method": "ect"}


def test_a_sampler_of_a_student_stands_for_all_its_trainings():
    config = load_config("digits", TWO | {"eval.samplers": "[teacher@ddim:2, student@1, cd@2]"})
    assert list(config.trainings) == ["cd", "cd-2", "ect"]
    assert [str(name) for name in config.samplers] == ["teacher@ddim:2", "cd@1", "cd-2@1", "ect@1", "cd@2", "cd-2@2"]
    assert {(each.student, each.number, each.key) for each in config.trainings.values()} == {
        ("cd", 1, "students.cd"),
        ("cd", 2, "students.cd"),
        ("ect", 1, "students.ect"),
    }
    assert list(load_config("digits", {"student.training_seeds": 3}).trainings) == ["student", "student-2", "student-3"]


def test_a_student_called_as_the_training_of_another_is_refused():
    named = {"students.cd-2.method": "ect"}
    with pytest.raises(UserError, match=r"^students: 'cd-2': is what training 2 of cd is called"):
        load_config("digits", TWO | named)
    assert load_config("digits", TWO | named | {"students.cd.training_seeds": 1})
    with pytest.raises(UserError, match=r"^eval\.samplers: 'cd-2@1': no student is called cd-2"):
        load_config("digits", TWO | {"eval.samplers": "[cd-2@1]"})


def test_how_often_a_student_is_trained_changes_no_training():
    students = [load_config("digits", {"student.training_seeds": n}).students["student"] for n in (1, 3)]
    assert students[0].numbers() == students[1].numbers()


def test_forward_equivalents_count_a_gradient_as_two_forward_evaluations():
    assert Evaluations(student=1, target=1, teacher=2).forward_equivalents == 6
    assert Evaluations(student=1, jvp=1).forward_equivalents == 5


def test_the_students_of_digits_family_cost_the_same(tiny_unet):
    config = load_config("digits-family")
    scheduler = build_scheduler(1000, "linear", "v_prediction")
    teacher = ddpm_model(tiny_unet(seed=1), scheduler)
    costs, trajectories = {}, config.trajectories.number * config.trajectories.steps / 1000
    for name, each in config.students.items():
        method: Any = each.method
        student: Any = ddim_student(teacher, scheduler) if isinstance(method, PD) else ConsistencyModel(tiny_unet())
        reads: Any = Trajectories([80.0, student.space.sigma_min], []) if isinstance(method, CMT) else teacher
        objective = method.build(student, reads)
        own = objective.cost.forward_equivalents
        if each.adversarial is not None:
            cost = each.adversarial.build(objective).cost
            assert 0 < cost.smaller == cost.forward_equivalents - own
            own += 1.015  # of the digits' networks; this one is smaller
        if each.matching is not None:
            own = each.matching.build(objective, student, teacher).cost.forward_equivalents
        costs[name] = each.train.kimg * own + trajectories * isinstance(method, CMT)
    assert costs == {name: pytest.approx(240, rel=0.035) for name in costs}
    assert {each.training_seeds for each in config.students.values()} == {3}
    methods = {each.method.name for each in config.students.values()}
    assert methods == {kind().name for kind in get_args(get_args(Method)[0])}
