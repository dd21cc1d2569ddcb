"""The continuous-time objective: its derivative, its fixed point, the direction it trains in, and what is refused."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.continuous import ContinuousObjective, LossWeight, derivatives
from fewstep.students.methods.scm import SCM
from fewstep.teachers.interfaces import Batch, Progress, Space, per_image
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import Consistency
from fewstep.teachers.solvers import ode_slope

PROGRESS = Progress(step=7, total_steps=10, images=0)
SPACE = Space(shape=(1, 4, 4), sigma_min=0.002, sigma_max=80.0)
LEVELS = torch.tensor([0.0021, 0.01, 0.1, 0.5, 2.0, 10.0, 80.0], dtype=torch.float64)
MEAN, VARIANCE = 0.2, 0.25


class SineEmbedding(nn.Module):
    """The timestep's embedding as in diffusers, which makes it float32 whatever it is given."""

    def forward(self, timesteps: Tensor) -> Tensor:
        angles = timesteps[:, None] * torch.exp(-math.log(10000) * torch.arange(8).double() / 8)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Exact(nn.Module):
    """F of the consistency function (share 1) or denoiser (share 0) of Gaussian data, or between, under a scaling."""

    def __init__(self, scaling: Consistency, share: float) -> None:
        super().__init__()
        self.scaling, self.share = scaling, nn.Parameter(torch.tensor(share))

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Any:
        sigma = (c_noise / 250).exp()
        factors = self.scaling(sigma)
        c_skip, c_out, x = per_image(factors.c_skip), per_image(factors.c_out), scaled / per_image(factors.c_in)
        still = ((VARIANCE + self.scaling.sigma_min**2) / (VARIANCE + sigma**2)).sqrt()
        shrink = (1 - self.share) * VARIANCE / (VARIANCE + sigma**2) + self.share * still
        return SimpleNamespace(sample=(MEAN + (x - MEAN) * per_image(shrink) - c_skip * x) / c_out)


def exact(share: float, sigma_min: float = 0.002) -> Preconditioned:
    scaling = Consistency(sigma_min=sigma_min)
    return Preconditioned(Exact(scaling, share), scaling, SPACE)


def noisy(levels: Tensor) -> Tensor:
    unit = torch.randn((len(levels), 1, 4, 4), generator=torch.Generator().manual_seed(3)).to(levels.dtype)
    return MEAN + unit * per_image((VARIANCE + levels**2).sqrt())


def test_the_derivative_is_a_central_difference(tiny_unet: Any):
    """The network has self-attention in its middle."""
    unet = tiny_unet(seed=2)
    unet.time_proj = SineEmbedding()
    model = ConsistencyModel(unet).double()
    sigma = torch.tensor([0.01, 0.3, 2.0, 40.0], dtype=torch.float64)
    x, slope = torch.randn((2, 4, 1, 8, 8), generator=torch.Generator().manual_seed(1)).double()
    first, second = derivatives(model, x, sigma, slope)
    step = 1e-5 * sigma
    with torch.no_grad():
        above, below = (model(x + per_image(h) * slope, sigma + h) for h in (step, -step))
    difference = (above - below) / (2 * per_image(step))
    assert ((first + second - difference).norm() / difference.norm()) < 1e-4
    for one, two in zip(first + second, difference, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))


def test_the_exact_map_is_a_fixed_point(gaussian: Any):
    x = noisy(LEVELS)
    slope = ode_slope(gaussian(MEAN, VARIANCE), x, LEVELS)
    scale = per_image((LEVELS**2 + 1).sqrt())
    at_rest = sum(derivatives(exact(1.0), x, LEVELS, slope))
    assert float((scale * at_rest).abs().max()) < 1e-6
    away = sum(derivatives(exact(0.9), x, LEVELS, slope))
    assert float((scale * away).abs().amax(dim=(1, 2, 3))[3:].min()) > 1e-4


def test_the_first_term_vanishes_at_the_denoiser(gaussian: Any):
    x = noisy(LEVELS)
    slope = ode_slope(gaussian(MEAN, VARIANCE), x, LEVELS)
    first, second = derivatives(exact(0.0, sigma_min=0.0), x, LEVELS, slope)
    assert float(first.abs().max()) < 1e-10
    assert float(second.abs().max()) > 1e-3


def test_training_goes_towards_the_exact_map(gaussian: Any):
    images = MEAN + VARIANCE**0.5 * torch.randn((64, 1, 4, 4), generator=torch.Generator().manual_seed(5))
    gradients = {}
    for share in (0.5, 1.0, 1.5):
        objective = ContinuousObjective(exact(share), gaussian(MEAN, VARIANCE), mean=0.0, std=1.0, warmup=0.0)
        objective(Batch(images=images), PROGRESS, torch.Generator().manual_seed(6)).loss.mean().backward()
        gradients[share] = float(objective.network.network.share.grad)  # type: ignore[arg-type]
    assert gradients[0.5] < -0.1 < 0.1 < gradients[1.5]
    assert abs(gradients[1.0]) < 1e-3


def test_an_evaluation_after_the_derivative_has_its_dropout(tiny_unet: Any):
    model = ConsistencyModel(tiny_unet(dropout=0.5)).train()
    x, sigma = torch.zeros(2, 1, 8, 8), torch.ones(2)
    state = torch.get_rng_state()
    first, second = (torch.stack(derivatives(model, x, sigma, x + 1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    torch.rand(1)
    assert not torch.equal(first, torch.stack(derivatives(model, x, sigma, x + 1)))  # dropout is at work


@pytest.mark.parametrize(("tangent", "evaluations"), [("teacher", 1), ("data", 0)])
def test_the_student_learns_and_the_teacher_does_not(tiny_unet: Any, tangent: Any, evaluations: int):
    teacher = ddpm_model(tiny_unet(seed=1), build_scheduler(1000, "linear", "v_prediction"))
    student = ConsistencyModel(tiny_unet(seed=2)).train()
    objective = SCM(tangent=tangent).build(student, teacher)
    calls: dict[str, int] = {"student": 0, "teacher": 0}
    for name, model in (("student", student), ("teacher", teacher)):
        model.network.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    batch = Batch(images=torch.rand((8, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1)
    terms = objective(batch, PROGRESS, torch.Generator().manual_seed(1))
    terms.loss.mean().backward()
    assert calls == {"student": objective.cost.student + objective.cost.jvp, "teacher": objective.cost.teacher}
    assert objective.cost.teacher == evaluations
    assert terms.estimate is not None
    assert terms.estimate.requires_grad
    assert all(torch.isfinite(each.grad).all() for each in objective.parameters() if each.grad is not None)
    assert float(student.network.conv_in.weight.grad.abs().max()) > 0  # type: ignore[union-attr]
    assert objective.weight.factors.grad is not None
    assert all(each.grad is None for each in teacher.parameters())
    assert objective.averaged() is student
    owned = [id(each) for group in objective.parameter_groups() for each in group["params"]]  # type: ignore[union-attr]
    assert sorted(owned) == sorted(id(each) for each in objective.parameters())


def test_the_time_embedding_is_slow_and_stays_so(tiny_unet: Any):
    """A change of ln sigma by a thousandth changes it little, and the untouched one by far more."""
    fast = ConsistencyModel(tiny_unet(seed=2))
    objective = SCM(tangent="data").build(slow := ConsistencyModel(tiny_unet(seed=2)), fast)
    optimizer = torch.optim.AdamW(objective.parameter_groups(), lr=1e-2)
    objective(Batch(images=torch.zeros(8, 1, 8, 8)), PROGRESS, torch.Generator().manual_seed(1)).loss.mean().backward()
    optimizer.step()
    near = 250 * torch.tensor([0.5, 0.501]).log()
    moves = [
        float(model.network.time_embedding.linear_1(model.network.time_proj(near)).diff(dim=0).detach().abs().max())
        for model in (slow, fast)
    ]
    assert 0 < 20 * moves[0] < moves[1]


def test_the_weight_comes_to_the_inverse_of_the_loss():
    weight = LossWeight(0.002, 80.0)
    sigma = torch.logspace(math.log10(0.002), math.log10(80.0), 50)
    loss = 0.1 + 0.05 * torch.cos(math.pi * torch.linspace(0, 1, 50))
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (weight(sigma).exp() * loss - weight(sigma)).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight(sigma).exp() * loss, torch.ones(50), atol=0.03, rtol=0)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class BackwardOnly(nn.Module):
    """A convolution whose output is rounded, with a derivative in reverse mode alone."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        return _Rounded.apply(self.convolution(x))


def test_a_network_without_a_forward_derivative_is_refused(tiny_unet: Any):
    model = ConsistencyModel(tiny_unet())
    model.network.conv_out = BackwardOnly(model.network.conv_out)  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=r"^student\.method: 'scm': the teacher's network, UNet2DModel, has no"
    ) as error:
        SCM().build(model, model)
    assert "\n" not in str(error.value)
