"""Truncated consistency training: the second stage's pairs, its frozen copy, and what its levels are chosen from."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from fewstep.students.consistency import ConsistencyModel
from fewstep.students.methods.tcm import TCM
from fewstep.students.truncated import TruncatedObjective
from fewstep.teachers.interfaces import NONE, Batch, Progress

Build = Callable[..., UNet2DModel]


def progress(step: int, total: int = 100) -> Progress:
    return Progress(step=step, total_steps=total, images=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective_of(unet: UNet2DModel, **settings: Any) -> TruncatedObjective:
    nobody: Any = None
    objective = TCM(**settings).build(ConsistencyModel(unet), nobody)
    assert isinstance(objective, TruncatedObjective)
    return objective


def test_the_first_stage_is_ect_with_all_its_doublings(tiny_unet: Build):
    pairs = objective_of(tiny_unet(), doublings=4).pairs
    for step, stage in ((0, 0), (9, 0), (10, 1), (49, 4)):
        drawn = pairs(64, progress(step), generator())
        torch.testing.assert_close(drawn.r, pairs.ect.lower(drawn.t, stage))
        assert drawn.t.min() < 0.1


@pytest.mark.parametrize("boundary", [1.0, 2.5])
def test_the_second_stage_has_a_quarter_at_the_boundary_and_none_below(tiny_unet: Build, boundary: float):
    pairs = objective_of(tiny_unet(), boundary=boundary).pairs
    drawn = pairs(4000, progress(50), generator())
    at = drawn.t == boundary
    assert int(at.sum()) == 1000
    assert (drawn.t >= boundary).all()
    assert (drawn.t <= 80).all()
    torch.testing.assert_close(drawn.r, pairs.ect.lower(drawn.t, pairs.ect.doublings))
    # Student's t by its density: the share of ln(t/boundary) below x, integrated here by the midpoint rule
    x = torch.linspace(0, math.log(80 / boundary), 2_000_001, dtype=torch.float64)
    density = (1 + (((x[1:] + x[:-1]) / 2) / 0.2) ** 2 / 0.01) ** -0.505
    for level in (1.02, 1.5, 10.0):
        expected = density[x[1:] <= math.log(level)].sum() / density.sum()
        share = (drawn.t[~at] <= boundary * level).double().mean()
        assert float(share) == pytest.approx(float(expected), abs=1e-3)


def test_the_mean_loss_is_that_of_consistency_and_a_tenth_of_the_boundary_s(tiny_unet: Build):
    drawn = objective_of(tiny_unet()).pairs(32, progress(80), generator())
    at, gap = drawn.t == 1.0, drawn.t - drawn.r
    distance = torch.rand(32, generator=generator(1))
    expected = (distance / gap)[~at].mean() + 0.1 * (distance / gap)[at].mean()
    torch.testing.assert_close((drawn.weight * distance).mean(), expected)


class Constant(nn.Module):
    """A network of one number, which it returns for every image."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: Any = NONE) -> torch.Tensor:
        return self.value * torch.ones_like(x)


@pytest.mark.parametrize(("step", "frozen_in_use"), [(49, False), (50, True)])
def test_targets_below_the_boundary_are_the_frozen_copy_s(tiny_unet: Build, step: int, frozen_in_use: bool):
    objective = objective_of(tiny_unet())
    objective.network, objective.frozen = Constant(1.0), Constant(2.0)
    objective.frozen.requires_grad_(False)
    seen = {}

    def distance(estimate: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.update(estimate=estimate, target=target[:, 0, 0, 0])
        return (estimate - target).flatten(1).sum(dim=1)

    objective.distance = distance
    batch = Batch(images=torch.zeros(16, 1, 8, 8))
    terms = objective(batch, progress(step), generator())
    drawn = objective.pairs(16, progress(step), generator())
    expected = torch.where(drawn.r < 1.0, 2.0, 1.0) if frozen_in_use else torch.ones(16)
    assert torch.equal(seen["target"], expected)
    assert len(expected.unique()) == (2 if frozen_in_use else 1)
    assert torch.equal(terms.sigma, drawn.t)


def test_the_copy_follows_in_the_first_stage_and_then_stays(tiny_unet: Build):
    objective = objective_of(tiny_unet())
    objective.network, objective.frozen = Constant(0.0), Constant(0.0)
    objective.frozen.requires_grad_(False)
    values = []
    for step in range(100):
        with torch.no_grad():
            objective.network.value.fill_(float(step))
        objective.update(progress(step))
        values.append(float(objective.frozen.value))
    assert 44 < values[49] < 49  # the average of about the last twentieth of 50 steps
    assert values[99] == values[49]
    assert "frozen.value" in objective.state_dict()
