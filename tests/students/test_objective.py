"""The discrete consistency objective: gradients, the boundary, dropout, the target and the teacher."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.students.bridges import data_bridge
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.methods import Method
from fewstep.students.methods.cd import CD
from fewstep.students.methods.cmt import CMT
from fewstep.students.methods.ct import CT
from fewstep.students.methods.dmd import DMD
from fewstep.students.methods.ect import ECT
from fewstep.students.methods.lcm import LCM
from fewstep.students.methods.pd import PD
from fewstep.students.objective import ConsistencyObjective, pseudo_huber
from fewstep.students.pairs import Pairs, SigmaPairs
from fewstep.students.trajectories import Trajectories
from fewstep.teachers.interfaces import Batch, Evaluations, Progress
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned
from small_training import Training, stored

Build = Callable[..., UNet2DModel]
PROGRESS = Progress(step=3, total_steps=10, images=24)


def batch(num: int = 8) -> Batch:
    return Batch(images=torch.rand((num, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fixed_pairs(t: float, r: float) -> Pairs:
    return lambda num, progress, generator: SigmaPairs(
        t=torch.full((num,), t), r=torch.full((num,), r), weight=torch.ones(num)
    )


def objective_of(network: Any, t: float, r: float, distance: Any = None) -> ConsistencyObjective:
    return ConsistencyObjective(
        network,
        pairs=fixed_pairs(t, r),
        bridge=data_bridge,
        distance=distance or pseudo_huber(1e-8),
        cost=Evaluations(student=1, target=1),
    )


class Spy:
    """A distance that keeps what it was given."""

    def __call__(self, estimate: Tensor, target: Tensor) -> Tensor:
        self.estimate, self.target = estimate, target
        return pseudo_huber(1e-8)(estimate, target)


METHODS: dict[str, Any] = {
    kind().name: kind()
    for kind in get_args(get_args(Method)[0])
    if kind is not PD  # see test_progressive.py
} | {
    "cd-published": CD(solver="euler", grid=18, target_ema=0.95, distance="l2"),
    "ct-l2": CT(distance="l2"),
    "dmd": DMD(fake_updates=1),  # the other numbers leave the student alone at some steps: see test_matching.py
    "ect-hour": ECT(q=256.0, doublings=0),
    "lcm-itself": LCM(skip=50, target_ema=0.0),
}
"""Every method at its defaults, and some of their variants: all must pass the tests that take a `name`."""


def build(name: str, model: ConsistencyModel, teacher: Preconditioned) -> Any:
    """The objective of METHODS[name]: what a method reads other than the teacher is made up here."""
    method = METHODS[name]
    if not isinstance(method, CMT):
        return method.build(model, teacher)
    sigmas = [model.sigma_max, 1.0, model.sigma_min]
    return method.build(model, Trajectories(sigmas, [torch.rand((16, 3, 1, 8, 8), generator=generator())]))


BOTH_HALVES = [Progress(step=step, total_steps=10, images=8 * step) for step in (3, 8)]


def teacher_of(unet: UNet2DModel) -> Preconditioned:
    return ddpm_model(unet, build_scheduler(1000, "linear", "v_prediction"))


def test_pseudo_huber_is_a_norm_of_the_whole_image():
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([[3.0, 0, 0, 4.0], [0, 0, 0, 0]]).reshape(2, 1, 2, 2)
    assert pseudo_huber(1e-8)(a, b).tolist() == pytest.approx([5.0, 0.0])
    assert pseudo_huber(12.0)(a, b).tolist() == pytest.approx([1.0, 0.0])


def test_gradient_is_finite_where_estimate_and_target_agree():
    a = torch.zeros(3, 1, 2, 2, requires_grad=True)
    pseudo_huber(1e-8)(a, torch.zeros(3, 1, 2, 2)).sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros_like(a))


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dropout_has_the_same_mask_in_both_branches(tiny_unet: Build, place: str):
    model = ConsistencyModel(tiny_unet(dropout=0.5)).train().to(place)
    images, sigma = batch().images.to(place), torch.full((8,), 0.7, device=place)
    with torch.no_grad():
        assert not torch.equal(model(images, sigma), model(images, sigma))  # dropout is at work
    spy = Spy()
    objective = objective_of(model, 0.7, 0.7, spy)  # the limit r -> t: the same input to both
    loss = objective(Batch(images=images), PROGRESS, generator()).loss
    assert torch.equal(spy.estimate, spy.target)
    assert loss.tolist() == [0.0] * 8
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    first = spy.estimate.detach().clone()
    objective(Batch(images=images), PROGRESS, generator())
    assert not torch.equal(spy.estimate, first)  # and the next step has another mask


def test_target_at_sigma_min_is_x_r(tiny_unet: Build):
    model, spy = ConsistencyModel(tiny_unet()), Spy()
    objective_of(model, 0.01, model.sigma_min, spy)(batch(), PROGRESS, generator())
    eps = torch.randn((8, 1, 8, 8), generator=generator())
    assert torch.equal(spy.target, batch().images + torch.full((8, 1, 1, 1), model.sigma_min) * eps)


def test_only_the_estimate_carries_a_gradient(tiny_unet: Build):
    model, spy = ConsistencyModel(tiny_unet()), Spy()
    terms = objective_of(model, 1.0, 0.5, spy)(batch(), PROGRESS, generator())
    assert spy.estimate.requires_grad
    assert not spy.target.requires_grad
    assert terms.sigma.tolist() == [1.0] * 8
    assert terms.loss.shape == (8,)


def test_weight_multiplies_the_distance(tiny_unet: Build):
    model, spy = ConsistencyModel(tiny_unet()), Spy()
    objective = objective_of(model, 1.0, 0.5, spy)
    plain = objective(batch(), PROGRESS, generator()).loss
    weights = torch.arange(1.0, 9.0)
    objective.pairs = lambda num, progress, generator: SigmaPairs(
        t=torch.full((num,), 1.0), r=torch.full((num,), 0.5), weight=weights
    )
    torch.testing.assert_close(objective(batch(), PROGRESS, generator()).loss, weights * plain)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_the_student_and_never_touches_the_teacher(tiny_unet: Build, name: str):
    teacher = teacher_of(tiny_unet(seed=1))  # its parameters ask for gradients: the objective must not give any
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    model = ConsistencyModel(tiny_unet(seed=2)).train()
    start = model.network.conv_in.weight.detach().clone()
    objective = build(name, model, teacher)
    owned = {id(parameter) for parameter in objective.parameters()}
    assert owned >= {id(parameter) for parameter in model.parameters()}
    assert owned.isdisjoint({id(parameter) for parameter in teacher.network.parameters()})
    optimizer = torch.optim.Adam(objective.parameter_groups(), lr=1e-3)
    for step in range(4):
        progress = Progress(step=step, total_steps=4, images=0)
        optimizer.zero_grad()
        terms = objective(batch(), progress, generator(step))
        assert terms.loss.shape == terms.sigma.shape == (8,)
        assert terms.estimate is not None
        assert terms.estimate.shape == batch().images.shape
        assert terms.estimate.requires_grad
        assert torch.isfinite(terms.loss).all()
        terms.loss.mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        objective.update(progress)
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    for key, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(model.network.conv_in.weight, start)


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_a_function_of_the_generator_alone(tiny_unet: Build, name: str):
    model = ConsistencyModel(tiny_unet(seed=2))
    objective = build(name, model, teacher_of(tiny_unet(seed=1)))
    first, again, other = (objective(batch(), PROGRESS, generator(seed)).loss for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("progress", BOTH_HALVES, ids=["first half", "second half"])
@pytest.mark.parametrize("name", METHODS)
def test_cost_is_the_evaluations_made(tiny_unet: Build, name: str, progress: Progress):
    model, teacher = ConsistencyModel(tiny_unet(seed=2)), teacher_of(tiny_unet(seed=1))
    objective = build(name, model, teacher)
    images = dict.fromkeys(("student", "target", "teacher"), 0)

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        part = "teacher" if module is teacher.network else "student" if torch.is_grad_enabled() else "target"
        images[part] += len(inputs[0])

    for network in (teacher.network, *(each for each in objective.modules() if isinstance(each, UNet2DModel))):
        network.register_forward_pre_hook(count)
    objective(batch(), progress, generator())
    cost = objective.cost
    assert images == {"student": 8 * cost.student, "target": 8 * (cost.target + cost.jvp), "teacher": 8 * cost.teacher}


@pytest.mark.parametrize(("skip", "table", "says"), [(20, False, "teacher.source"), (1000, True, "the 1000 timesteps")])
def test_lcm_needs_a_teacher_with_the_timesteps(tiny_unet: Build, skip: int, table: bool, says: str):
    model, teacher = ConsistencyModel(tiny_unet(seed=2)), teacher_of(tiny_unet(seed=1))
    if not table:
        teacher.space = replace(teacher.space, table=None)
    with pytest.raises(UserError, match=rf"^student\.method\.(name|skip): .*{says}"):
        LCM(skip=skip).build(model, teacher)


def test_forward_equivalents_count_a_backward_pass_as_two_forward_passes():
    assert Evaluations(student=1, target=1, teacher=2).forward_equivalents == 6
    assert Evaluations(student=1, jvp=1).forward_equivalents == 5


def test_a_target_of_decay_mu_keeps_that_share_of_itself_in_a_step(tiny_unet: Build):
    model = ConsistencyModel(tiny_unet(seed=2)).train()
    objective: Any = CD(target_ema=0.95).build(model, teacher_of(tiny_unet(seed=1)))
    before = [parameter.clone() for parameter in objective.target.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    objective.update(PROGRESS)
    for moved, old, new in zip(objective.target.parameters(), before, model.parameters(), strict=True):
        assert not moved.requires_grad
        torch.testing.assert_close(moved, 0.95 * old + 0.05 * new)


def test_a_target_of_its_own_is_what_is_compared_with_and_has_the_same_mask(tiny_unet: Build):
    model, spy = ConsistencyModel(tiny_unet(dropout=0.5)).train(), Spy()
    objective: Any = ConsistencyObjective(
        model,
        pairs=fixed_pairs(0.7, 0.7),
        bridge=data_bridge,
        distance=spy,
        cost=Evaluations(student=1, target=1),
        decay=lambda progress: 0.9,
    ).train()
    objective(batch(), PROGRESS, generator())
    assert torch.equal(spy.estimate, spy.target)  # a copy still
    with torch.no_grad():
        objective.target.network.conv_out.bias.add_(1)
    objective(batch(), PROGRESS, generator())
    shift = spy.target - spy.estimate.detach()
    torch.testing.assert_close(shift, torch.full_like(shift, float(shift.mean())))
    assert float(shift.mean()) > 0.1


@pytest.mark.parametrize("name", ["ct", "tcm"])
def test_training_with_a_target_resumes_to_the_bit(tiny_unet: Build, tmp_path: Path, name: str):
    """Interrupted after 4 and after 8 of 12 steps, that is in both of tcm's stages."""

    def objective() -> Any:
        torch.manual_seed(0)
        objective = build(name, ConsistencyModel(tiny_unet(seed=2)), teacher_of(tiny_unet(seed=1)))
        objective.after, move = lambda step: None, objective.update

        def update(progress: Progress) -> None:
            move(progress)
            objective.after(progress.step + 1)

        objective.update = update
        return objective

    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator(), dtype=torch.uint8)
    whole, parts = (Training(tmp_path / name, checkpoint_kimg=1.0) for name in ("whole", "parts"))
    for training in (whole, parts):
        training.job = replace(training.job, data=stored(images))
    whole.run(objective())
    for step in (4, 8):
        parts.run(objective(), interrupted_at=step)
    parts.run(objective())
    assert parts.hashes(12) == whole.hashes(12)
    assert parts.trace() == whole.trace()
