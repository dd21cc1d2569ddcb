"""The matching finish: its part of the batch, what drives whom, its cost, and that training with it resumes."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.students.adversarial import AdversarialFinish
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.matching_finish import MatchingFinish
from fewstep.students.methods.adversarial import Adversarial
from fewstep.students.methods.ect import ECT
from fewstep.students.methods.matching import Matching
from fewstep.students.objective import ConsistencyObjective
from fewstep.teachers.interfaces import Batch, LossTerms, Progress
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler
from small_training import Training, stored


@pytest.fixture
def build(tiny_unet: Any) -> Any:
    """build(weight=..., ...): ect with a matching finish."""

    def build(**settings: Any) -> MatchingFinish:
        teacher = ddpm_model(tiny_unet(seed=1), build_scheduler(1000, "linear", "v_prediction"))
        student = ConsistencyModel(tiny_unet(seed=2))
        return Matching(**settings).build(ECT().build(student, teacher), student, teacher)

    return build


def terms_of(objective: Any, step: int, total: int = 10) -> LossTerms:
    batch = Batch(images=torch.linspace(-1, 1, 8 * 64).reshape(8, 1, 8, 8))
    return objective(batch, Progress(step=step, total_steps=total, images=0), torch.Generator().manual_seed(3))


def test_before_the_finish_it_is_the_method_alone(build: Any):
    objective = build(share=0.5).train()
    assert isinstance(objective.objective, ConsistencyObjective)
    terms, own = terms_of(objective, 4), terms_of(objective.objective, 4)
    assert torch.equal(terms.loss, own.loss)
    assert len(terms.loss) == 8


def test_in_the_finish_the_batch_is_divided_and_curves_show_the_method(build: Any):
    objective = build(share=0.5, images=0.25).train()
    terms = terms_of(objective, 9)
    assert terms.shown is not None
    assert terms.estimate is not None
    assert (len(terms.loss), len(terms.shown), len(terms.sigma), len(terms.estimate)) == (6, 6, 6, 2)
    added = (terms.loss - terms.shown).detach()
    assert torch.allclose(added, added[:1].expand(6))
    assert set(terms.log) == {"fake_loss", "matching_loss"}
    size, fake, matching = 64, terms.log["fake_loss"], terms.log["matching_loss"]
    assert float(added[0]) == pytest.approx(float(size * matching + fake), rel=1e-4)


def test_the_student_is_called_once_for_both_parts_and_learns_what_it_learns_of_two_calls(build: Any):
    gradients, calls = [], []
    for apart in (False, True):
        objective = build(share=1.0).train()
        objective._apart = apart
        handle = objective.network.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        terms_of(objective, 9).loss.mean().backward()
        handle.remove()
        gradients.append([each.grad for each in objective.parameters()])
        assert calls.count(True) == (2 if apart else 1)
        calls.clear()
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_with_dropout_the_parts_are_apart_so_that_both_points_of_a_method_have_one_mask(tiny_unet: Any):
    teacher = ddpm_model(tiny_unet(seed=1), build_scheduler(1000, "linear", "v_prediction"))
    student = ConsistencyModel(tiny_unet(seed=2, dropout=0.1))
    assert Matching().build(ECT().build(student, teacher), student, teacher)._apart


def test_its_weight_on_the_student_grows_from_nothing_and_the_fake_learns_from_its_start(build: Any):
    objective = build(share=0.5).train()
    with torch.no_grad():  # at first it is the teacher, and then nothing drives the student
        for each in objective.fake.parameters():
            each.mul_(1.1)
    largest = {}
    for step in (500, 625):
        objective.zero_grad()
        terms = terms_of(objective, step, 1000)
        assert terms.shown is not None
        (terms.loss - terms.shown).mean().backward()
        assert any(each.grad is not None and each.grad.any() for each in objective.fake.parameters())
        gradients = [each.grad for each in objective.network.parameters() if each.grad is not None]
        largest[step] = max(float(each.abs().max()) for each in gradients)
    assert largest[500] == 0 < largest[625]


def test_the_learning_rate_is_lower_in_the_finish(build: Any):
    objective = Adversarial(width=4).build(build(share=0.5, lr_scale=0.2))
    assert [objective.pace(Progress(step=step, total_steps=10, images=0)) for step in (4, 5)] == [1.0, 0.2]


def test_the_teacher_is_no_part_of_it_and_gets_no_gradient(build: Any):
    objective = build().train()
    (teacher,) = objective._matching[0]._teacher
    terms_of(objective, 9).loss.mean().backward()
    assert all(each.grad is None for each in teacher.parameters())
    mine = {id(each) for each in objective.parameters()}
    assert not mine & {id(each) for each in teacher.parameters()}
    networks = list(objective.network.parameters()), list(objective.fake.parameters())
    assert len(mine) == sum(map(len, networks))
    assert [len(group["params"]) for group in objective.parameter_groups()] == list(map(len, networks))


def test_its_cost_is_that_of_both_by_their_part(build: Any):
    """Ect takes one evaluation with a gradient and one without; matching two with and one of the teacher."""
    cost = build(share=0.5, images=0.4).cost
    assert (cost.student, cost.target, cost.teacher) == pytest.approx((1 + 0.2, 0.8, 0.2))


def test_an_adversarial_finish_judges_its_images(build: Any):
    objective = Adversarial(width=4).build(build(images=0.25)).train()
    assert isinstance(objective, AdversarialFinish)
    terms = terms_of(objective, 9)
    assert set(terms.log) == {"fake_loss", "matching_loss", "discriminator_loss", "fooled_loss"}
    assert len(terms.loss) == 6
    terms.loss.mean().backward()
    assert all(each.grad is not None for each in objective.discriminator.parameters())


@pytest.mark.parametrize("interrupted_at", [3, 10])
def test_resumed_to_the_bit_before_and_in_the_finish(build: Any, tmp_path: Path, interrupted_at: int):
    def objective(stops_at: int | None) -> MatchingFinish:
        made = build(share=0.5)
        made.update = lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.step + 1 == stops_at else None
        return made

    whole, cut = Training(tmp_path / "whole"), Training(tmp_path / "cut")
    for each in (whole, cut):
        images = each.job.data.images(0, 40)
        each.job = replace(each.job, data=stored(images.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    whole.run(objective(None))
    with pytest.raises(SystemExit):
        cut.run(objective(interrupted_at))
    cut.run(objective(None))
    assert cut.hashes(12) == whole.hashes(12)


def test_it_may_begin_between_two_log_lines(build: Any, tmp_path: Path):
    run = Training(tmp_path / "run", log_every=12, checkpoint_kimg=1.0)
    images = run.job.data.images(0, 40)
    run.job = replace(run.job, data=stored(images.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    run.run(build(share=0.5))
    assert [record["step"] for record in run.trace()] == [12]
