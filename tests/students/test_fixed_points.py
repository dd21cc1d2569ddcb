"""Discrete objectives on Gaussian data reach their own fixed points, and those converge to the exact map.

On a chain t_n > ... > sigma_min a bridge multiplies the distance from the mean by e_i each step, so the fixed point is
f(x, t_n) = m + (x - m) * prod e_i; the exact map multiplies by sqrt((v + sigma_min^2) / (v + t_n^2)).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.students.bridges import Bridge, data_bridge, euler_bridge, heun_bridge
from fewstep.students.methods.cd import CD
from fewstep.students.methods.ct import CT
from fewstep.students.methods.ict import ICT
from fewstep.students.methods.lcm import LCM
from fewstep.students.objective import ConsistencyObjective, pseudo_huber
from fewstep.students.objective import squared as squared_distance
from fewstep.students.pairs import ECTPairs, KarrasPairs
from fewstep.teachers.interfaces import NONE, Batch, Condition, Evaluations, Progress, per_image
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.schedule import karras_sigmas, vp_table

MEAN, VARIANCE, S_MIN, S_MAX = 0.2, 0.25, 0.002, 80.0
PROGRESS = Progress(step=0, total_steps=1, images=0)


def karras(num: int) -> list[float]:
    return karras_sigmas(num, S_MIN, S_MAX).tolist()


def product(bridge: Bridge, chain: Sequence[float]) -> float:
    """prod e_i, from taking the bridge along the chain from a point at distance 1 from the mean."""
    x = torch.full((1, 1, 1, 1), MEAN + 1.0, dtype=torch.float64)
    for t, r in pairwise(chain):
        x = bridge(x, torch.zeros_like(x), torch.tensor([t]).double(), torch.tensor([r]).double())
    return float(x) - MEAN


def ratio(bridge: Bridge, chain: Sequence[float]) -> float:
    """One-step standard deviation over the exact one."""
    return product(bridge, chain) * math.sqrt((VARIANCE + chain[0] ** 2) / (VARIANCE + chain[-1] ** 2))


def ect_chain(stage: int) -> list[float]:
    pairs = ECTPairs(sigma_min=S_MIN, sigma_max=S_MAX, doublings=8)
    chain = [S_MAX]
    while chain[-1] > S_MIN:
        chain.append(float(pairs.lower(torch.tensor([chain[-1]], dtype=torch.float64), stage)))
    return chain


@pytest.mark.parametrize(("num", "expected"), [(18, 1.055), (40, 1.010)])
def test_heun_one_step_ratio(gaussian: Any, num: int, expected: float):
    assert ratio(heun_bridge(gaussian(MEAN, VARIANCE)), karras(num)) == pytest.approx(expected, abs=6e-4)


# The data bridge's minimiser is Euler in expectation (test_bridges.py), so Euler gives its fixed point.
@pytest.mark.parametrize(("num", "expected"), [(18, 0.846), (151, 0.981)])
def test_data_one_step_ratio(gaussian: Any, num: int, expected: float):
    assert ratio(euler_bridge(gaussian(MEAN, VARIANCE)), karras(num)) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("stage", "expected"), [(0, 0.60), (3, 0.94), (7, 0.996)])
def test_ect_one_step_ratio(gaussian: Any, stage: int, expected: float):
    assert ratio(euler_bridge(gaussian(MEAN, VARIANCE)), ect_chain(stage)) == pytest.approx(expected, abs=6e-3)


@pytest.mark.parametrize(("make", "order"), [(euler_bridge, 1), (heun_bridge, 2)])
def test_fixed_points_converge_to_the_exact_map(gaussian: Any, make: Any, order: int):
    bridge = make(gaussian(MEAN, VARIANCE))
    errors = [abs(ratio(bridge, karras(num)) - 1) for num in (101, 201, 401)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)
    assert errors[-1] < 0.01


class Discrete:
    """What a method asks of a student and of a teacher of discrete timesteps, for Gaussian data."""

    sigma_min, sigma_max = S_MIN, S_MAX

    def __init__(self, gaussian: Any) -> None:
        self.teacher = gaussian(MEAN, VARIANCE)
        table = vp_table(build_scheduler(1000, "linear", "epsilon").alphas_cumprod)
        self.space = self.teacher.space = replace(self.teacher.space, table=table)


def chain_of(method: Any, gaussian: Any) -> tuple[ConsistencyObjective, list[float]]:
    """A method's objective, and the chain of noise levels that its pairs of the end of training form."""
    setting = Discrete(gaussian)
    network = nn.Identity()
    for name in ("sigma_min", "sigma_max", "space"):
        setattr(network, name, getattr(setting, name))
    objective = method.build(network, setting.teacher)
    drawn = objective.pairs(40_000, Progress(step=999, total_steps=1000, images=0), torch.Generator().manual_seed(0))
    step = dict(zip(drawn.t.tolist(), drawn.r.tolist(), strict=True))
    chain = [max(step)]
    while chain[-1] in step:
        chain.append(step[chain[-1]])
    assert len(chain) == len(step) + 1  # of all levels, each the next one's neighbour
    assert chain[0] == pytest.approx(S_MAX)
    assert chain[-1] == pytest.approx(S_MIN)
    return objective, chain


def factor(t: float, r: float, heun: bool) -> float:
    """e of one step in closed form."""
    slope = t / (VARIANCE + t**2)
    euler = 1 + (r - t) * slope
    return 1 + (r - t) / 2 * (slope + euler * r / (VARIANCE + r**2)) if heun else euler


GRIDS = {
    "cd": (lambda num: CD(grid=num + 1), [100, 200, 400], 2),
    "cd-euler": (lambda num: CD(solver="euler", grid=num + 1, target_ema=0.9), [100, 200, 400], 1),
    "ct": (lambda num: CT(s1=num), [100, 200, 400], 1),
    "ict": (lambda num: ICT(s0=10, s1=num), [80, 160, 320], 1),
    "lcm": (lambda num: LCM(skip=1000 // num), [100, 200, 500], 1),
}
"""A method by the number of its intervals, three such numbers, and the order in which its fixed point converges."""


@pytest.mark.parametrize("name", GRIDS)
def test_a_method_s_own_fixed_point_and_its_order_of_convergence(gaussian: Any, name: str):
    make, numbers, order = GRIDS[name]
    errors = []
    for num in numbers:
        objective, chain = chain_of(make(num), gaussian)
        exact = gaussian(MEAN, VARIANCE)
        bridge = euler_bridge(exact) if objective.bridge is data_bridge else objective.bridge
        expected = math.prod(factor(t, r, name == "cd") for t, r in pairwise(chain))
        assert product(bridge, chain) == pytest.approx(expected, rel=1e-6)
        errors.append(abs(ratio(bridge, chain) - 1))
    for (coarse, more), (fine, most) in pairwise(zip(errors, numbers, strict=True)):
        assert math.log(coarse / fine) / math.log(most / more) == pytest.approx(order, abs=0.25)
    assert errors[-1] < 0.02


class Table(nn.Module):
    """f(x, s) = m + (x - m)*a(s), one factor for each noise level of a grid; a(sigma_min) = 1."""

    def __init__(self, grid: Tensor, factors: Tensor) -> None:
        super().__init__()
        self.grid, self.factors = grid, nn.Parameter(factors.clone())

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition = NONE) -> Tensor:
        index = (sigma[:, None] - self.grid).abs().argmin(dim=1)
        return MEAN + (x - MEAN) * per_image(torch.cat([self.factors, torch.ones(1)])[index])


def own_fixed_point(bridge: Bridge, chain: Sequence[float]) -> Tensor:
    return torch.tensor([product(bridge, chain[index:]) for index in range(len(chain) - 1)])


def data(num: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(images=MEAN + VARIANCE**0.5 * torch.randn((num, 1, 8, 8), generator=generator))


def objective_of(
    factors: Tensor, chain: Sequence[float], bridge: Bridge, squared: bool = False
) -> ConsistencyObjective:
    network: Any = Table(torch.tensor(chain), factors)
    return ConsistencyObjective(
        network,
        pairs=KarrasPairs(sigma_min=S_MIN, sigma_max=S_MAX, num=len(chain)),
        bridge=bridge,
        distance=squared_distance if squared else pseudo_huber(1e-8),
        cost=Evaluations(student=1, target=1),
    )


def test_distillation_has_no_loss_at_its_own_fixed_point_only(gaussian: Any):
    chain, bridge = karras(8), heun_bridge(gaussian(MEAN, VARIANCE))
    own = own_fixed_point(bridge, chain)
    exact = torch.tensor([math.sqrt((VARIANCE + S_MIN**2) / (VARIANCE + s**2)) for s in chain[:-1]])
    batch = data(700, seed=0)
    at_own, at_exact = (
        objective_of(factors, chain, bridge)(batch, PROGRESS, torch.Generator().manual_seed(1)).loss.detach().mean()
        for factors in (own, exact)
    )
    assert at_own < 1e-4  # float32 at sigma 80
    assert at_exact > 0.05


def test_distillation_trains_to_its_own_fixed_point(gaussian: Any):
    chain, bridge = karras(6), heun_bridge(gaussian(MEAN, VARIANCE))
    own = own_fixed_point(bridge, chain)
    objective = objective_of(torch.zeros(5), chain, bridge, squared=True)
    parameters = list(objective.parameters())
    generator = torch.Generator().manual_seed(2)
    batch = data(50, seed=3)
    # each level's loss is a parabola in its factor: a Newton step for every level, once for each step of the chain
    for _ in range(len(chain)):
        [gradient] = torch.autograd.grad(
            objective(batch, PROGRESS, generator).loss.sum(), parameters, create_graph=True
        )
        [curvature] = torch.autograd.grad(gradient.sum(), parameters)
        with torch.no_grad():
            parameters[0].sub_(gradient / curvature)
    torch.testing.assert_close(parameters[0].detach(), own, atol=1e-5, rtol=1e-3)


def test_training_on_data_is_stationary_at_its_own_fixed_point(gaussian: Any):
    """The gradient there is sampling noise, about a hundredth of the gradient 20 % away; 10 sigma are allowed."""
    chain = karras(8)
    own = own_fixed_point(euler_bridge(gaussian(MEAN, VARIANCE)), chain)
    batch = data(4200, seed=4)
    gradients = []
    for scale in (torch.ones(7), torch.tensor([1.2, 1, 1, 1, 1, 1, 1])):
        for level in range(7) if scale[0] > 1 else [0]:
            objective = objective_of(own * scale.roll(level), chain, data_bridge, squared=True)
            loss = objective(batch, PROGRESS, torch.Generator().manual_seed(5)).loss.mean()
            [gradient] = torch.autograd.grad(loss, list(objective.parameters()))
            gradients.append(gradient)
    at_rest, away = gradients[0], torch.stack(gradients[1:]).diagonal()
    assert (away > 0).all()
    assert (at_rest.abs() < 0.1 * away).all(), at_rest / away
