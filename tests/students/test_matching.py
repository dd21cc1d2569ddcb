"""Distribution matching: its gradients, what the fake denoiser learns from, and parameters trained now and then."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.students.consistency import ConsistencyModel
from fewstep.students.frozen import frozen_call
from fewstep.students.matching import MatchingObjective, dmd_loss, sid_loss
from fewstep.students.methods.dmd import DMD
from fewstep.teachers.interfaces import Batch, LossTerms, Progress, per_image
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned
from small_training import Training

LOSSES = ["dmd", "sid"]


@pytest.fixture
def teacher(tiny_unet: Any) -> Preconditioned:
    """Its parameters ask for gradients: an objective must not give any."""
    return ddpm_model(tiny_unet(seed=1), build_scheduler(1000, "linear", "v_prediction"))


@pytest.fixture
def build(tiny_unet: Any, teacher: Preconditioned) -> Any:
    """build(loss=..., ...): the objective of a random student."""

    def build(**settings: Any) -> MatchingObjective:
        given = {"fake_updates": 5, "fake_lr_scale": 2.0, "at_sigma_max": 0.5} | settings
        return DMD(**given).build(ConsistencyModel(tiny_unet(seed=2)), teacher)

    return build


def terms_of(objective: MatchingObjective, step: int, images: float = 0.5) -> LossTerms:
    batch = Batch(images=torch.full((8, 1, 8, 8), images))
    return objective(batch, Progress(step=step, total_steps=10, images=0), torch.Generator().manual_seed(3))


def gradients(module: nn.Module) -> list[Tensor]:
    return [each.grad for each in module.parameters() if each.grad is not None]


def changed(objective: MatchingObjective) -> MatchingObjective:
    with torch.no_grad():
        for each in objective.fake.parameters():
            each.mul_(1.1)
    return objective


@pytest.mark.parametrize(("loss", "rounding"), [("dmd", 0.0), ("sid", 1e-6)])
def test_nothing_drives_the_student_where_fake_and_teacher_agree(build: Any, loss: str, rounding: float):
    objective = build(loss=loss).train()
    terms_of(objective, 4).loss.mean().backward()
    assert max(float(each.abs().max()) for each in gradients(objective.network)) <= rounding
    objective.zero_grad()
    terms_of(changed(objective), 4).loss.mean().backward()
    assert max(float(each.abs().max()) for each in gradients(objective.network)) > 1e-3


@pytest.mark.parametrize("alpha", [None, 1.0, 1.2])
def test_gaussian_images_go_from_the_fake_to_the_real(gaussian: Any, alpha: float | None):
    """At real N(m, v) and fake N(m', v) the gradient is the same for every pixel.

    D - P = d = s^2*(m - m')/(v + s^2). DMD: -d/mean|x - D|. SiD: d*(dP/dy - 1) = -d*s^2/(v + s^2), over the same.
    """
    real, fake, variance = gaussian(0.4, 0.25), gaussian(-0.1, 0.25), 0.25
    s = torch.tensor([0.1, 0.5, 2.0, 20.0], dtype=torch.float64)
    x, noise = torch.randn((2, 4, 1, 4, 4), generator=torch.Generator().manual_seed(1)).double()
    x = (-0.1 + 0.5 * x).requires_grad_()
    y = x + per_image(s) * noise
    d_y, p_y = frozen_call(real, y, s), frozen_call(fake, y, s)
    loss = dmd_loss(x, d_y.detach(), p_y.detach()) if alpha is None else sid_loss(x, d_y, p_y, alpha)
    [gradient] = torch.autograd.grad(loss.sum(), [x])
    pull = s**2 / (variance + s**2)
    scale = (x - d_y).detach().abs().mean(dim=(1, 2, 3))
    expected = -(pull * 0.5) * (1 if alpha is None else pull) / scale / 16
    torch.testing.assert_close(gradient, per_image(expected).expand_as(x).contiguous(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_student_learns_at_every_kth_step_the_fake_at_all_the_teacher_at_none(
    build: Any, teacher: Preconditioned, loss: str
):
    objective = changed(build(loss=loss, fake_updates=3)).train()
    for step in range(6):
        objective.zero_grad(set_to_none=True)
        terms = terms_of(objective, step)
        terms.loss.mean().backward()
        learns = step in (2, 5)
        assert bool(gradients(objective.network)) == learns == terms.estimate.requires_grad  # type: ignore[union-attr]
        assert any(each.any() for each in gradients(objective.fake))
        assert not gradients(teacher)
    assert objective.averaged() is objective.network
    assert [group.get("lr_scale") for group in objective.parameter_groups()] == [None, 2.0]


def test_the_fake_learns_from_the_students_images_alone(build: Any):
    """With all images from pure noise both losses draw the same, and neither reads the batch's."""
    found = []
    for loss, images in (("dmd", 0.5), ("dmd", -0.5), ("sid", 0.5)):
        objective = changed(build(loss=loss, at_sigma_max=1.0, fake_updates=1)).train()
        terms_of(objective, 0, images).loss.sum().backward()
        found.append(gradients(objective.fake))
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))
    objective = build(loss="dmd").train()
    assert not torch.equal(terms_of(objective, 0, 0.5).loss[4:], terms_of(objective, 0, -0.5).loss[4:])
    objective = build(loss="sid").train()
    assert torch.equal(terms_of(objective, 4, 0.5).loss, terms_of(objective, 4, -0.5).loss)  # data-free at all levels


@pytest.mark.parametrize("loss", LOSSES)
def test_cost_is_the_evaluations_of_an_average_step(build: Any, teacher: Preconditioned, loss: str):
    objective, images = build(loss=loss, fake_updates=4, at_sigma_max=0.25), [0, 0]

    def count(which: int, inputs: Any) -> None:
        images[which] += len(inputs[0])

    for model in (objective.network, objective.fake):
        model.network.register_forward_pre_hook(lambda _, inputs: count(0, inputs))
    teacher.network.register_forward_pre_hook(lambda _, inputs: count(1, inputs))
    for step in range(4):
        terms_of(objective, step)
    cost = objective.cost
    of_teacher = cost.teacher if loss == "sid" else 0.0  # its derivative
    assert images == [8 * 4 * (cost.student + cost.target + cost.jvp - of_teacher), 8 * 4 * cost.teacher]


class Stopping(MatchingObjective):
    """Calls `after` with each step done."""

    after: Any = staticmethod(lambda step: None)

    def update(self, progress: Progress) -> None:
        self.after(progress.step + 1)


@pytest.mark.parametrize("interrupted_at", [2, 7])
def test_resumed_to_the_bit_before_and_after_the_students_first_step(
    tiny_unet: Any, teacher: Preconditioned, tmp_path: Path, interrupted_at: int
):
    def objective(stops_at: int | None) -> Stopping:
        settings = {"alpha": None, "fake_lr_scale": 1.0, "at_sigma_max": 0.5, "mean": -0.5, "std": 1.2}
        made = Stopping(ConsistencyModel(tiny_unet(seed=2)), teacher, fake_updates=5, **settings)
        made.after = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == stops_at else None
        return made

    whole, cut = Training(tmp_path / "whole"), Training(tmp_path / "cut")
    whole.run(objective(None))
    with pytest.raises(SystemExit):
        cut.run(objective(interrupted_at))
    cut.run(objective(None))
    assert cut.hashes(12) == whole.hashes(12)
