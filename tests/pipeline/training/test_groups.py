"""Several groups of parameters under one optimizer: each clipped by itself, trained whenever it has a gradient."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.errors import UserError

STEPS = 12  # of the job in small_training.py


@pytest.fixture
def grouped(denoising):
    """The small objective with two networks beside it: `rare` has a gradient from step 3 on, `even` each second step.

    Their terms share no parameter with the first network's; `scale` multiplies their gradients.
    """

    class Grouped(denoising):
        def __init__(self, after=lambda step: None, scale=1e4):
            super().__init__(after)
            self.scale = scale
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(8)
                self.rare, self.even = nn.Linear(16, 1), nn.Linear(16, 1)

        def parameter_groups(self):
            others = [{"params": list(each.parameters()), "lr_scale": 0.5} for each in (self.rare, self.even)]
            return [*super().parameter_groups(), *others]

        def forward(self, batch, progress, generator):
            terms, images = super().forward(batch, progress, generator), batch.images.flatten(1)
            loss = terms.loss
            for network, trained in ((self.rare, progress.step >= 3), (self.even, progress.step % 2 == 0)):
                if trained:
                    loss = loss + self.scale * (network(images).squeeze(1) - 1).square()
            return replace(terms, loss=loss)

    return Grouped


@pytest.fixture
def late(monkeypatch):
    """Training as on a GPU."""
    monkeypatch.setattr("fewstep.pipeline.training.loop._is_asynchronous", lambda device: True)


def moments(run, step):
    """By group, exp_avg of all its weights in one piece, [N], in a checkpoint."""
    found = load_file(run.checkpoint(step) / "optimizer.safetensors")
    return {int(name.split(".")[0]): value for name, value in found.items() if name.endswith(".exp_avg")}


def test_a_large_gradient_of_one_group_does_not_scale_another_s(training, grouped):
    alone, beside = training("alone"), training("beside")
    alone.run()
    beside.run(grouped())
    mine, theirs = (load_file(run.checkpoint(STEPS) / "objective.safetensors") for run in (alone, beside))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    norms = [[record["grad_norm"] for record in run.trace()] for run in (alone, beside)]
    assert norms[0] == norms[1]
    assert max(norms[0]) < 10  # of the first group alone


def test_each_group_is_clipped_to_the_largest_norm(training, grouped):
    run = training(betas=(0.0, 0.99), gradient_clip=0.25)
    run.run(grouped(), interrupted_at=1)
    found = moments(run, 1)
    for group in (0, 2):  # with beta 0 the first moment is the gradient
        assert found[group].norm().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(("optimizer", "when"), [("adamw", "at once"), ("adamw", "late"), ("radam", "late")])
@pytest.mark.parametrize("interrupted_at", [1, 3, 4, 7])
def test_groups_trained_now_and_then_are_resumed_to_the_bit(
    training, grouped, request, optimizer, when, interrupted_at
):
    if when == "late":
        request.getfixturevalue("late")
    whole, cut = training("whole", optimizer=optimizer), training("cut", optimizer=optimizer)
    whole.run(grouped())
    cut.run(grouped(), interrupted_at=interrupted_at)
    assert (1 in moments(cut, interrupted_at)) == (interrupted_at > 3)
    cut.run(grouped())
    assert cut.hashes(STEPS) == whole.hashes(STEPS)
    assert cut.trace() == whole.trace()


@pytest.mark.parametrize(("optimizer", "when"), [("adamw", "at once"), ("adamw", "late"), ("radam", "late")])
def test_an_infinite_gradient_of_any_group_stops_all(training, grouped, request, optimizer, when):
    class Diverging(grouped):
        def forward(self, batch, progress, generator):
            terms = super().forward(batch, progress, generator)
            if progress.step == 5:
                terms = replace(terms, loss=terms.loss + (self.rare.weight.sum() * 0).sqrt())
            return terms

    if when == "late":
        request.getfixturevalue("late")
    changes = {"optimizer": optimizer, "checkpoint_kimg": 1.0}
    bad, good = training("bad", **changes), training("good", **changes)
    objective = Diverging()
    with pytest.raises(UserError, match=r"gradient norm [\d.]+, nan, 0\.0 at step 5 is not finite"):
        bad.run(objective)
    good.run(grouped(), interrupted_at=5)
    kept = load_file(good.checkpoint(5) / "objective.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in objective.state_dict().items())
    assert math.isfinite(bad.trace()[-1]["grad_norm"])


def test_the_first_step_of_radam_follows_the_gradient_and_decays_the_weights_apart_from_it(training, denoising):
    run = training(optimizer="radam", weight_decay=0.1, gradient_clip=1e9)
    objective, grads = denoising(), []
    weight = objective.network[0].weight
    start = weight.detach().clone()
    weight.register_hook(lambda grad: grads.append(grad.clone()))
    run.run(objective, interrupted_at=1)
    rate = run.job.learning_rate(0)
    expected = start * (1 - rate * 0.1) - rate * grads[0]  # Liu 2020: no second moment while rho_t is at most 4
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_an_objective_sets_the_pace_of_the_learning_rate_of_every_group(training, grouped):
    class Slower(grouped):
        def pace(self, progress):
            return 1.0 if progress.step < 4 else 0.0

    run, other = training("slower"), training("other")
    objective = Slower()
    other.run(grouped(), interrupted_at=4)
    run.run(objective)
    kept = load_file(other.checkpoint(4) / "objective.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in objective.state_dict().items())
