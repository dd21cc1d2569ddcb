"""Trajectory regression: where it starts, where it leads, and that the exact map has no loss but the solver's."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.methods.cmt import CMT
from fewstep.students.objective import squared
from fewstep.students.regression import TrajectoryRegression
from fewstep.students.trajectories import Trajectories
from fewstep.teachers.interfaces import NONE, Batch, Condition, LossTerms, Progress, per_image
from fewstep.teachers.trajectory import trajectory, trajectory_sigmas

LOW, HIGH = 0.0020000000949949026, 80.0  # as float32 has them
LEVELS = [HIGH, 20.0, 5.0, 1.0, LOW]


class Exact(nn.Module):
    """The exact map f* of N(0.1, 0.04) to LOW; keeps what it was given."""

    sigma_min, sigma_max = LOW, HIGH

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition = NONE) -> Tensor:
        self.x, self.sigma = x, sigma
        return 0.1 + (x - 0.1) * per_image(((0.04 + LOW**2) / (0.04 + sigma.double() ** 2)).sqrt()).to(x.dtype)


def terms_of(objective: TrajectoryRegression, num: int, seed: int = 0, images: float = 0.0) -> LossTerms:
    batch = Batch(images=torch.full((num, 1, 4, 4), images))
    return objective(batch, Progress(step=0, total_steps=1, images=0), torch.Generator().manual_seed(seed))


def regression(points: Tensor, sigmas: list[float], network: Any, share: float = 0.25) -> TrajectoryRegression:
    return TrajectoryRegression(network, Trajectories(sigmas, [points]), distance=squared, at_sigma_max=share)


@pytest.mark.parametrize(("share", "num"), [(0.25, 16), (0.5, 40), (0.0, 16), (0.7, 30)])
def test_a_share_starts_at_sigma_max_and_the_rest_at_the_others_alike(share: float, num: int):
    """The numbers are stratified: the first share, of whole images, is exact, and the others are to fewer than two."""
    objective = regression(torch.zeros(7, 5, 1, 4, 4), LEVELS, Exact(), share)
    sigma = torch.stack([terms_of(objective, num, seed).sigma for seed in range(20)])
    counts = torch.stack([(sigma == torch.tensor(level)).sum(1) for level in LEVELS[:-1]], dim=1)
    assert torch.equal(counts.sum(1), torch.full((20,), num))  # none at sigma_min
    assert (counts[:, 0] == round(share * num)).all()
    assert ((counts[:, 1:] - num * (1 - share) / 3).abs() < 2).all()


def test_each_point_is_led_to_the_end_of_its_own_trajectory():
    points = torch.randn((7, 5, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    objective, seen = regression(points, LEVELS, Exact()), set()
    targets: list[Tensor] = []
    objective.distance = lambda a, b: targets.append(b) or squared(a, b)
    terms = terms_of(objective, 64)
    for x, sigma, target in zip(objective.network.x, terms.sigma.tolist(), targets[0], strict=True):
        level = torch.tensor(LEVELS).tolist().index(sigma)
        (which,) = [index for index in range(7) if torch.equal(points[index, level], x)]
        assert torch.equal(target, points[which, -1])
        seen.add(which)
    assert seen == set(range(7))
    assert torch.equal(terms.sigma, objective.network.sigma)
    assert torch.equal(terms.loss, terms_of(objective, 64, images=1.0).loss)  # the images are not read


def test_the_exact_map_has_the_solvers_error_as_its_only_loss(gaussian: Any):
    """None on exact trajectories; on the solver's a fourth at twice the steps."""
    noise = torch.randn((64, 1, 4, 4), generator=torch.Generator().manual_seed(2)).clamp(-2.5, 2.5).double()
    losses = []
    for steps in (64, 128):
        sigmas = trajectory_sigmas(steps, LOW, HIGH)
        points = trajectory(gaussian(0.1, 0.04), sigmas, noise)
        objective = regression(points.float(), sigmas.float().tolist(), Exact(), 0.9)
        losses.append(float(terms_of(objective, 64).loss.sqrt().max()))
    spread = ((0.04 + torch.tensor(LEVELS) ** 2) / (0.04 + HIGH**2)).sqrt().reshape(-1, 1, 1, 1)
    exact = 0.1 + (HIGH * noise[:, None] - 0.1) * spread
    assert float(terms_of(regression(exact.float(), LEVELS, Exact()), 64).loss.sqrt().max()) < 1e-6
    assert math.log2(losses[0] / losses[1]) == pytest.approx(2, abs=0.3)


def test_a_student_with_other_ends_is_refused(tiny_unet: Any):
    made = Trajectories([80.0, 1.0, LOW], [torch.zeros(2, 3, 1, 8, 8)])
    assert CMT().build(ConsistencyModel(tiny_unet()), made)
    for ends in ({"sigma_max": 40.0}, {"sigma_min": 0.01}):
        with pytest.raises(UserError, match=r"^student\.sigma_max, student\.sigma_min: .* go from 80 to 0\.002: give"):
            CMT().build(ConsistencyModel(tiny_unet(), **ends), made)
