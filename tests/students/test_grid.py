"""The stock scheduler's grid, solved for the two-step noise level."""

from dataclasses import replace
from itertools import pairwise

import pytest

from fewstep.pipeline.stages.search import SEARCHED_SIGMAS
from fewstep.students.grid import StepGrid, solve_grid


@pytest.mark.parametrize("sigma", [0.15, 0.25, 0.39, 0.4, 0.41, 0.65, 0.82, 1.0, 1.6, 2.5, 4.0])
@pytest.mark.parametrize("bounds", [(0.002, 80.0), (0.002, 157.0)])
def test_the_two_step_call_lands_on_the_chosen_sigma(sigma: float, bounds: tuple[float, float]):
    grid = solve_grid(sigma, *bounds)
    sigmas = grid.sigmas(2, *bounds)
    assert len(sigmas) == 2
    assert sigmas[0] == pytest.approx(bounds[1], rel=1e-5)
    assert sigmas[1] == pytest.approx(sigma, rel=1e-4)


def test_published_value():
    grid = solve_grid(0.82, 0.002, 80.0)
    assert grid.num_train_timesteps == 129
    assert grid.rho == pytest.approx(19.3128, abs=5e-4)


@pytest.mark.parametrize(("sigma", "num"), [(0.1, 4), (0.15, 6), (0.39, 8), (0.4, 8), (0.41, 129), (39.0, 129)])
def test_fewer_points_are_used_below_the_geometric_mean(sigma: float, num: int):
    assert solve_grid(sigma, 0.002, 80.0).num_train_timesteps == num


@pytest.mark.parametrize("sigma", SEARCHED_SIGMAS)
def test_every_searched_sigma_leaves_four_steps(sigma: float):
    grid = solve_grid(sigma, 0.002, 80.0)
    sigmas = grid.sigmas(4, 0.002, 80.0)
    assert len(sigmas) == 4
    assert all(one > two for one, two in pairwise(sigmas))


@pytest.mark.parametrize("sigma", [0.0, 0.002, 0.05, 41.0, 80.0, 100.0])
def test_a_sigma_out_of_reach_is_an_error_naming_it(sigma: float):
    with pytest.raises(ValueError, match=f"no grid between 0.002 and 80.0 has its two-step point at {sigma}"):
        solve_grid(sigma, 0.002, 80.0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_every_step_count_starts_at_sigma_max_and_descends(steps: int):
    sigmas = StepGrid().sigmas(steps, 0.002, 80.0)
    assert len(sigmas) == steps
    assert sigmas[0] == pytest.approx(80.0, rel=1e-5)
    assert all(one > two for one, two in pairwise(sigmas))
    assert sigmas[-1] > 0.002


def test_the_default_grid_has_the_stock_schedulers_two_step_point():
    # (80^(1/7) + 0.002^(1/7))^7 / 2^7, which every odd number of points has in its middle
    assert StepGrid().sigmas(2, 0.002, 80.0)[1] == pytest.approx(2.515, abs=1e-3)


@pytest.mark.parametrize("steps", [0, -1, 9, 100])
def test_steps_that_the_grid_has_not_are_an_error(steps: int):
    with pytest.raises(ValueError, match=f"steps {steps}: must be from 1 to 8"):
        StepGrid().sigmas(steps, 0.002, 80.0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_finer_grid_gives_the_default_calls_the_same_levels(steps: int):
    coarse, fine = (StepGrid(num_train_timesteps=num, rho=19.3128) for num in (9, 129))
    assert fine.sigmas(steps, 0.002, 80.0) == pytest.approx(coarse.sigmas(steps, 0.002, 80.0), rel=1e-6)


@pytest.mark.parametrize("num", [4, 6, 8, 9, 129])
def test_points_are_those_of_the_stock_schedulers_default_call(num: int):
    grid = StepGrid(num_train_timesteps=num, rho=9.0)
    scheduler = grid.scheduler(0.002, 80.0)
    for steps in range(1, min(num, 9)):
        scheduler.set_timesteps(steps)
        assert grid.sigmas(steps, 0.002, 80.0) == scheduler.sigmas[:-1].tolist()


@pytest.mark.parametrize("middle", [0.42, 0.65, 1.0, 4.0])
def test_129_points_express_any_level_to_a_few_percent(middle: float):
    grid = solve_grid(middle, 0.002, 80.0)
    for sigma in (0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
        assert grid.at([grid.nearest(sigma, 0.002, 80.0), 0], 0.002, 80.0)[1] == pytest.approx(sigma, rel=0.1)


def test_chosen_points_take_the_place_of_the_default_calls():
    grid = replace(solve_grid(0.65, 0.002, 80.0), chosen={4: [70, 64, 40, 0]})
    assert grid.sigmas(4, 0.002, 80.0) == grid.at([70, 64, 40, 0], 0.002, 80.0)
    assert grid.sigmas(4, 0.002, 80.0)[2] == grid.sigmas(2, 0.002, 80.0)[1]


@pytest.mark.parametrize(
    ("middle", "lowest"), [(1.0, 1.0), (2.5, 1.0), (4.0, 1.0), (4.0, 4.0), (39.0, 39.0), (1.0, 0.01)]
)
def test_no_steps_go_below_a_lowest_level(middle: float, lowest: float):
    before = solve_grid(middle, 0.002, 80.0)
    grid = before.down_to(lowest, 0.002, 80.0)
    assert grid.sigmas(2, 0.002, 80.0) == before.sigmas(2, 0.002, 80.0)
    for steps in (4, 8):
        sigmas = grid.sigmas(steps, 0.002, 80.0)
        assert all(high > low for high, low in pairwise(sigmas))
        assert sigmas[-1] >= lowest * 0.999
        assert sigmas[-1] < lowest * 1.2 or steps not in grid.chosen
        assert (steps in grid.chosen) == (before.sigmas(steps, 0.002, 80.0)[-1] < lowest * 0.999)
    assert StepGrid().down_to(0.0, 0.002, 80.0) == StepGrid()
