"""The loss by noise level: every loss in its bin, means over the steps since the last log line, exact when resumed."""

from dataclasses import replace

import pytest
import torch

from fewstep.pipeline.training.levels import BINS, KEYS, SIGMA_MAX, SIGMA_MIN, sums_and_counts

STEPS = 12  # of the job in small_training.py


@pytest.fixture
def spread(denoising):
    """The small objective at two noise levels that change with the step; `seen` keeps (step, sigma, loss)."""

    class Spread(denoising):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, batch, progress, generator):
            terms = super().forward(batch, progress, generator)
            sigma = torch.tensor([0.01 * 2.0**progress.step] + [3.0] * (len(terms.loss) - 1))
            self.seen += zip([progress.step] * len(sigma), sigma.tolist(), terms.loss.tolist(), strict=True)
            return replace(terms, sigma=sigma)

    return Spread


def bin_of(sigma):
    edges = [SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** (index / BINS) for index in range(1, BINS)]
    return sum(sigma >= edge for edge in edges)


def test_every_loss_is_in_the_bin_of_its_level_and_what_lies_outside_in_the_outer_ones():
    sigma = torch.cat([torch.tensor([0.0, 1e-4, 0.0021, 79.0, 80.0, 1e4]), torch.logspace(-2.6, 1.8, 200)])
    loss = torch.rand(len(sigma), generator=torch.Generator().manual_seed(0))
    sums, counts = sums_and_counts(loss, sigma).tolist()
    places = [bin_of(value) for value in sigma.tolist()]
    assert counts == [places.count(index) for index in range(BINS)]
    assert min(counts) > 10
    expected = [loss[[place == index for place in places]].sum().item() for index in range(BINS)]
    assert sums == pytest.approx(expected, rel=1e-5)


def test_keys_are_the_middles_of_the_bins():
    assert tuple(f"loss/{value}" for value in (0.0039, 0.015, 0.055, 0.21, 0.78, 2.9, 11, 41)) == KEYS


@pytest.mark.parametrize("slices", [1, 4])
def test_a_record_holds_the_mean_loss_of_each_level_since_the_one_before(training, spread, slices):
    run, objective, expected = training(log_every=5, slices=slices), spread(), {}
    run.run(objective)
    for record, steps in zip(run.trace(), (range(5), range(5, 10), range(10, 12)), strict=True):
        losses = [
            [loss for step, sigma, loss in objective.seen if step in steps and bin_of(sigma) == b] for b in range(8)
        ]
        expected = {key: sum(each) / len(each) for key, each in zip(KEYS, losses, strict=True) if each}
        assert {key: value for key, value in record.items() if key in KEYS} == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 2


@pytest.mark.parametrize("when", ["at once", "late"])
def test_levels_not_logged_yet_are_resumed_to_the_bit(training, spread, monkeypatch, when):
    if when == "late":
        monkeypatch.setattr("fewstep.pipeline.training.loop._is_asynchronous", lambda device: True)
    whole, cut = training("whole", log_every=5), training("cut", log_every=5)
    whole.run(spread())
    for step in (3, 9):
        cut.run(spread(), interrupted_at=step)
    cut.run(spread())
    assert cut.trace() == whole.trace()
    assert len({key for record in whole.trace() for key in record} & set(KEYS)) > 4
