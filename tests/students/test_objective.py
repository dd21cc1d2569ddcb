"""The discrete consistency objective: gradients, the boundary, dropout, the target and the teacher."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fewstep.students.bridges import data_bridge
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.methods.cd import CD
from fewstep.students.methods.ect import ECT
from fewstep.students.objective import ConsistencyObjective, pseudo_huber
from fewstep.students.pairs import Pairs, SigmaPairs
from fewstep.teachers.interfaces import Batch, Evaluations, Progress
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned

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


METHODS = {"cd": CD(), "cd-euler-karras": CD(solver="euler", grid=18), "ect": ECT()}


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
def test_the_teacher_is_unchanged_and_never_owned(tiny_unet: Build, name: str):
    teacher = teacher_of(tiny_unet(seed=1))  # its parameters ask for gradients: the objective must not give any
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    model = ConsistencyModel(tiny_unet(seed=2)).train()
    start = model.network.conv_in.weight.detach().clone()
    objective = METHODS[name].build(model, teacher)
    owned = {id(parameter) for parameter in objective.parameters()}
    assert owned == {id(parameter) for parameter in model.parameters()}
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        loss = objective(batch(), Progress(step=step, total_steps=2, images=0), generator(step)).loss.mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    for key, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(model.network.conv_in.weight, start)


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_a_function_of_the_generator_alone(tiny_unet: Build, name: str):
    model = ConsistencyModel(tiny_unet(seed=2))
    objective = METHODS[name].build(model, teacher_of(tiny_unet(seed=1)))
    first, again, other = (objective(batch(), PROGRESS, generator(seed)).loss for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Counted(nn.Module):
    """Counts the evaluations of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.count = 0
        module.register_forward_pre_hook(self.add)

    def add(self, module: nn.Module, inputs: object) -> None:
        self.count += 1


@pytest.mark.parametrize("name", METHODS)
def test_cost_is_the_evaluations_made(tiny_unet: Build, name: str):
    model, teacher = ConsistencyModel(tiny_unet(seed=2)), teacher_of(tiny_unet(seed=1))
    of_student, of_teacher = Counted(model.network), Counted(teacher.network)
    objective = METHODS[name].build(model, teacher)
    objective(batch(), PROGRESS, generator())
    assert of_student.count == objective.cost.student + objective.cost.target == 2
    assert of_teacher.count == objective.cost.teacher
