"""Progressive distillation: the target, the stages and their timesteps, and what is trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from pydantic import ValidationError

from fewstep.errors import UserError
from fewstep.students.ddim import DDIMStudent, ddim_student
from fewstep.students.methods.adversarial import Adversarial
from fewstep.students.methods.pd import PD
from fewstep.students.progressive import ProgressiveDistillation, two_steps
from fewstep.teachers.interfaces import Batch, Progress
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.preconditioned import Preconditioned

Build = Callable[..., UNet2DModel]
IMAGES = torch.rand((64, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1


def made(unet: UNet2DModel, **options: Any) -> tuple[DDIMStudent, Preconditioned]:
    given: dict[str, Any] = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"} | options
    scheduler = DDPMScheduler(**given)
    teacher = ddpm_model(unet, scheduler).eval()
    return ddim_student(teacher, scheduler), teacher


def at(step: int, total: int = 12) -> Progress:
    return Progress(step=step, total_steps=total, images=64 * step)


def ddim(z: torch.Tensor, x_0: torch.Tensor, s: float, r: float) -> torch.Tensor:
    """A DDIM step on z = a*x0 + b*eps with a^2 + b^2 = 1, b/a = s (Song 2021, eq. 12)."""
    (a, b), (a_r, b_r) = ((1 / (1 + v**2) ** 0.5, v / (1 + v**2) ** 0.5) for v in (s, r))
    return a_r * x_0 + b_r * (z - a * x_0) / b


@pytest.mark.parametrize("sigmas", [(2.0, 0.9, 0.3), (0.05, 0.02, 0.0), (20291.0, 5.0, 1.0), (1.0, 1.0, 0.0)])
def test_one_step_to_the_target_ends_where_two_steps_of_the_teacher_do(gaussian: Any, sigmas: tuple[float, ...]):
    teacher, generator = gaussian(0.2, 0.25), torch.Generator().manual_seed(1)
    x_0, eps = (torch.randn((5, 1, 4, 4), generator=generator, dtype=torch.float64) for _ in range(2))
    s, s1, s2 = sigmas
    x = x_0 + s * eps
    levels: Any = tuple(torch.full((5,), each, dtype=torch.float64) for each in sigmas)
    target = two_steps(teacher, x, levels)
    z = x / (1 + s**2) ** 0.5
    middle = ddim(z, teacher(x, levels[0]), s, s1)
    end = ddim(middle, teacher(middle * (1 + s1**2) ** 0.5, levels[1]), s1, s2)
    torch.testing.assert_close(ddim(z, target, s, s2), end, atol=1e-10, rtol=1e-10)


def test_a_student_at_its_target_makes_the_teachers_images(tiny_unet: Build):
    """`plan(4)` of the network against `two_steps` chained in two steps: the same levels, to float32's rounding."""
    model, _ = made(tiny_unet(seed=2))
    objective = ProgressiveDistillation(model.eval(), 4)
    x = model.space.sigma_max * torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    expected = model.plan(4).sample(model, lambda: x / (1 + model.space.sigma_max**2) ** 0.5)
    rows = objective._sigmas[0].unsqueeze(-1).expand(-1, -1, 3)
    with torch.no_grad():
        for s, s1, s2 in rows:
            target = two_steps(model, x, (s, s1, s2))
            x = target + (s2 / s).reshape(-1, 1, 1, 1) * (x - target)
    torch.testing.assert_close(x.clamp(-1, 1), expected, atol=2e-5, rtol=0)


def test_the_network_sees_the_timesteps_of_the_stock_call_at_every_stage(tiny_unet: Build):
    model, _ = made(tiny_unet())
    objective, seen = ProgressiveDistillation(model, 16), []
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    assert objective.stages == [8, 4, 2, 1]
    for stage, steps in enumerate(objective.stages):
        seen.clear()
        for index in range(3):
            generator = torch.Generator().manual_seed(index)
            objective(Batch(images=IMAGES), at(3 * stage), generator)
        times = torch.cat(seen)
        assert float((times - times.round()).abs().max()) < 1e-3
        counts = {time: int((times.round() == time).sum()) for time in set(times.round().int().tolist())}
        assert sorted(counts, reverse=True) == model.timesteps(8)
        own = sum(counts[time] for time in model.timesteps(steps))
        assert own == (144 if steps < 8 else 192)


def test_at_the_end_of_a_stage_its_average_becomes_student_and_teacher(tiny_unet: Build):
    model, _ = made(tiny_unet(seed=1))
    objective = ProgressiveDistillation(model, 8)
    student, teacher = (each.network.conv_out.weight for each in (model, objective.teacher))
    start, changed = student.detach().clone(), []
    for step in range(48):
        with torch.no_grad():
            student.add_(1.0)
        before = teacher.clone()
        objective.update(at(step, 48))
        if not torch.equal(before, teacher):
            changed.append(step)
            assert torch.equal(student, teacher)
            start += 15  # of 16 steps a half-life each: 16 - (1/2 + 1/4 + ...)
            torch.testing.assert_close(student.detach(), start, atol=1e-3, rtol=0)
    assert changed == [15, 31]


def test_the_student_alone_is_trained_at_the_cost_that_is_named(tiny_unet: Build):
    model, teacher = made(tiny_unet(seed=1, dropout=0.3))
    objective = PD(start_steps=4).build(model, teacher).train()
    counts = {"student": 0, "teacher": 0}
    for name, module in (("student", model.network), ("teacher", objective.teacher.network)):
        module.register_forward_pre_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    assert not objective.teacher.training
    (group,) = objective.parameter_groups()
    assert {id(each) for each in group["params"]} == {id(each) for each in model.parameters()}
    terms = objective(Batch(images=IMAGES), at(0), torch.Generator().manual_seed(0))
    assert counts == {"student": objective.cost.student, "teacher": objective.cost.teacher}
    assert terms.estimate is not None
    assert terms.estimate.requires_grad
    terms.loss.mean().backward()
    assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in model.parameters())
    assert all(each.grad is None for each in (*objective.teacher.parameters(), *teacher.parameters()))
    again = objective(Batch(images=IMAGES), at(0), torch.Generator().manual_seed(1))
    assert not torch.equal(terms.loss, again.loss)


def test_an_adversarial_finish_goes_around_it(tiny_unet: Build):
    model, teacher = made(tiny_unet(seed=1))
    objective = Adversarial().build(PD(start_steps=4).build(model, teacher)).train()
    terms = objective(Batch(images=IMAGES), at(11), torch.Generator().manual_seed(0))
    assert float(terms.log["fooled_loss"]) > 0
    terms.loss.mean().backward()
    objective.update(at(11))
    assert all(each.grad is not None for each in model.parameters())


@pytest.mark.parametrize("steps", [12, 1, 2048])
def test_steps_that_cannot_be_halved_down_to_one_are_refused(steps: int):
    with pytest.raises((UserError, ValidationError), match="start_steps"):
        PD(start_steps=steps)


def test_more_steps_than_the_schedule_has_are_refused(tiny_unet: Build):
    model, teacher = made(tiny_unet(), num_train_timesteps=10)
    with pytest.raises(UserError, match=r"start_steps: 16: is more than the teacher has timesteps, 10"):
        PD(start_steps=16).build(model, teacher)
