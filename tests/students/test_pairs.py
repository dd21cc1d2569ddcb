"""Pairs of noise levels."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from fewstep.students.pairs import CTPairs, ECTPairs, ICTPairs, KarrasPairs, TablePairs
from fewstep.teachers.interfaces import Progress, stratified
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.schedule import karras_sigmas, vp_table

ECT = ECTPairs(sigma_min=0.002, sigma_max=80.0, doublings=6)
CT = CTPairs(sigma_min=0.002, sigma_max=80.0, s0=2, s1=150, mu0=0.9)
ICT = ICTPairs(sigma_min=0.002, sigma_max=80.0, s0=10, s1=1280)
LINEAR = vp_table(build_scheduler(1000, "linear", "epsilon").alphas_cumprod)


def progress(step: int, total: int = 700) -> Progress:
    return Progress(step=step, total_steps=total, images=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "pairs",
    [
        *(ECT, CT, ICT, TablePairs(sigma_min=0.002, sigma_max=80.0, table=LINEAR, skip=20)),
        *(KarrasPairs(sigma_min=0.002, sigma_max=80.0), KarrasPairs(sigma_min=0.01, sigma_max=14.6, num=40)),
    ],
)
@pytest.mark.parametrize("step", [0, 350, 699])
def test_t_is_above_r_and_r_not_below_sigma_min(pairs: Any, step: int):
    drawn = pairs(20_000, progress(step), generator(step))
    lowest = torch.tensor(pairs.sigma_min)
    assert (drawn.t > drawn.r).all()
    assert (drawn.r >= lowest).all()
    assert (drawn.t <= pairs.sigma_max).all()
    assert torch.isfinite(drawn.weight).all()
    assert (drawn.weight > 0).all()
    assert drawn.t.dtype == drawn.r.dtype == drawn.weight.dtype == torch.float32


def test_ect_pairs_hold_in_the_narrowest_strata():
    # a million strata reach within 1e-7 of the truncation points, where t comes closest to sigma_min
    drawn = ECT(1_000_000, progress(699), generator())
    assert (drawn.t > drawn.r).all()
    assert torch.isfinite(drawn.weight).all()


def test_ect_weight_is_one_over_the_gap():
    drawn = ECT(1000, progress(200), generator())
    assert torch.equal(drawn.weight, 1 / (drawn.t - drawn.r))


def test_stages_are_equal_parts_of_training():
    stages = [ECT.stage(progress(step)) for step in range(700)]
    assert stages == [step // 100 for step in range(700)]
    assert ECTPairs(sigma_min=0.002, sigma_max=80.0, doublings=0).stage(progress(699)) == 0


@pytest.mark.parametrize("q", [2.0, 4.0])
@pytest.mark.parametrize("stage", [0, 2, 6])
def test_gap_is_the_papers(stage: int, q: float):
    pairs = ECTPairs(sigma_min=0.002, sigma_max=80.0, doublings=6, q=q)
    for t in (0.0021, 0.05, 0.4, 2.0, 80.0):
        expected = max(0.002, t * (1 - q ** -(stage + 1) * (1 + 8 / (1 + math.exp(t)))))
        assert float(pairs.lower(torch.tensor([t]), stage)) == pytest.approx(expected, rel=1e-5)


def test_each_stage_brings_r_closer():
    t = torch.logspace(-2.5, 1.9, 50)
    gaps = torch.stack([t - ECT.lower(t, stage) for stage in range(7)])
    assert (gaps.diff(dim=0) <= 0).all()
    torch.testing.assert_close(gaps[6, -1], gaps[0, -1] / 64, rtol=1e-3, atol=0)


def test_ln_t_is_a_truncated_normal():
    """Stratified, so the quantiles are met to 1/num: no statistical error to speak of."""
    drawn = ECT(20_000, progress(0), generator())
    normal = torch.distributions.Normal(-1.1, 2.0)
    low, high = (normal.cdf(torch.tensor(s).log()) for s in (0.002, 80.0))
    for probability in (0.1, 0.5, 0.9):
        expected = normal.icdf(low + (high - low) * probability).exp()
        assert float(drawn.t.quantile(probability)) == pytest.approx(float(expected), rel=3e-3)


def test_karras_pairs_are_neighbours_and_uniform():
    pairs = KarrasPairs(sigma_min=0.002, sigma_max=80.0, num=18)
    drawn = pairs(1700, progress(0), generator())
    grid = karras_sigmas(18, 0.002, 80.0).float()
    index = (drawn.t[:, None] == grid).int().argmax(dim=1)
    assert torch.equal(grid[index], drawn.t)
    assert torch.equal(grid[index + 1], drawn.r)
    assert index.bincount(minlength=17).tolist() == [100] * 17
    assert torch.equal(drawn.weight, torch.ones(1700))


@pytest.mark.parametrize(("k", "expected"), [(0, 2), (1, 3), (100, 16), (2500, 76), (7500, 131), (9999, 151)])
def test_ct_s_grid_grows_as_published(k: int, expected: int):
    """N(k) with s0 = 2, s1 = 150, K = 10,000, and mu(k) = exp(s0*ln(mu0)/N(k))."""
    now = progress(k, 10_000)
    assert CT.points(now) == expected
    assert CT.decay(now) == pytest.approx(0.9 ** (2 / expected))
    drawn = CT(4000, now, generator())
    grid = karras_sigmas(expected, 0.002, 80.0).float()
    assert torch.equal(drawn.t.unique(), grid[:-1].flip(0))
    assert torch.equal(drawn.r.unique(), grid[1:].flip(0))


def test_ct_and_ict_depend_on_the_share_of_training_alone():
    for pairs in (CT, ICT):
        short, long = (
            [pairs.points(progress(step, total)) for step in range(0, total, total // 8)] for total in (80, 8000)
        )
        assert short == long


def test_ict_s_grid_doubles_as_published():
    """K = 400,000, K' = 50,000: 11, 21, ..., 1281 points (Song & Dhariwal 2023, eq. 8)."""
    points = [ICT.points(progress(step, 400_000)) for step in range(0, 400_000, 25_000)]
    assert points == [10 * 2**stage + 1 for stage in range(8) for _ in range(2)]
    assert ICT.points(progress(49_999, 400_000)) == 11
    odd = ICTPairs(sigma_min=0.002, sigma_max=80.0, s0=10, s1=100)  # 3.3 doublings: held to s1
    assert [odd.points(progress(step, 430)) for step in (0, 100, 200, 300, 429)] == [11, 21, 41, 81, 101]
    assert ICT.points(progress(2, 3)) == 41


def test_ict_draws_an_interval_as_often_as_the_lognormal_falls_into_it():
    grid = karras_sigmas(11, 0.002, 80.0)
    upwards = grid.flip(0).tolist()
    erf = [math.erf((math.log(sigma) + 1.1) / (math.sqrt(2) * 2.0)) for sigma in upwards]
    expected = torch.tensor([high - low for low, high in pairwise(erf)], dtype=torch.float64).flip(0)
    p = ICT.probabilities(grid)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(p, expected / expected.sum())
    drawn = ICT(100_000, progress(0), generator())
    index = (drawn.t[:, None] == grid.float()).int().argmax(dim=1)
    assert torch.equal(grid.float()[index + 1], drawn.r)
    torch.testing.assert_close(index.bincount(minlength=10) / 1e5, p.float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(drawn.weight, 1 / (drawn.t - drawn.r), rtol=1e-4, atol=0)


def test_lcm_s_pairs_are_twenty_timesteps_apart_and_reach_both_ends():
    drawn = TablePairs(sigma_min=0.002, sigma_max=80.0, table=LINEAR, skip=20)(5000, progress(0), generator())
    inner = LINEAR[19::20]
    grid = torch.cat([torch.tensor([0.002]), inner[inner < 80].float(), torch.tensor([80.0])])
    assert torch.equal(drawn.t.unique(), grid[1:])
    assert torch.equal(drawn.r.unique(), grid[:-1])
    step = dict(zip(drawn.t.tolist(), drawn.r.tolist(), strict=True))
    assert all(step[high] == low for low, high in pairwise(grid.tolist()))
    assert TablePairs(
        sigma_min=0.002, sigma_max=float(LINEAR[19]), table=LINEAR, skip=20
    ).grid.tolist() == pytest.approx([float(LINEAR[19]), 0.002])  # an entry at an end is not there twice


@pytest.mark.parametrize("num", [1, 2, 33, 1000])
def test_stratified_has_one_number_in_each_part(num: int):
    numbers = stratified(num, generator(num))
    assert numbers.dtype == torch.float64
    assert ((numbers > 0) & (numbers < 1)).all()
    assert (numbers * num).long().sort().values.tolist() == list(range(num))


def test_pairs_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (ECT(64, progress(0), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.t, again.t)
    assert not torch.equal(first.t, other.t)
    assert torch.equal(torch.get_rng_state(), state)
