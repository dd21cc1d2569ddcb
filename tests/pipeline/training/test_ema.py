"""The weight average: its half-life in images, its warm-up, and what it leaves alone."""

import pytest
import torch
from torch import nn

from fewstep.pipeline.training.ema import EMA


def network(value):
    module = nn.Linear(2, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_after_one_halflife_half_of_the_old_weights_is_left():
    trained = network(1.0)
    ema = EMA(trained, halflife_kimg=1)
    nn.init.zeros_(trained.weight)
    for step in range(10):  # far from the warm-up: 1,000,000 images seen
        ema.update(images=1_000_000 + 100 * step, batch_size=100)
    weight = ema.network.get_parameter("weight")
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5), rtol=1e-6, atol=0)


def test_during_the_warm_up_the_halflife_is_a_twentieth_of_the_images_seen():
    trained = network(1.0)
    ema = EMA(trained, halflife_kimg=1000)
    nn.init.zeros_(trained.weight)
    ema.update(images=2000, batch_size=100)  # half-life 100 images
    weight = ema.network.get_parameter("weight")
    torch.testing.assert_close(weight, torch.full_like(weight, 0.5), rtol=1e-6, atol=0)


def test_the_first_step_forgets_the_first_weights():
    trained = network(1.0)
    ema = EMA(trained, halflife_kimg=1000)
    nn.init.zeros_(trained.weight)
    ema.update(images=64, batch_size=64)  # half-life a twentieth of the batch
    assert float(ema.network.get_parameter("weight").max()) == pytest.approx(0.5**20)


def test_the_average_is_frozen_and_follows_without_touching_the_network():
    trained = network(3.0)
    ema = EMA(trained, halflife_kimg=1)
    assert ema.network is not trained
    assert not ema.network.training
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    nn.init.constant_(trained.weight, 5.0)
    ema.update(images=100_000, batch_size=1000)
    assert trained.weight.unique().tolist() == [5.0]
    assert ema.network.get_parameter("weight").unique().tolist() == pytest.approx([4.0])


def test_buffers_are_copied():
    trained = nn.BatchNorm1d(3)
    ema = EMA(trained, halflife_kimg=1)
    trained.running_mean.fill_(7.0)  # type: ignore[union-attr]
    ema.update(images=100, batch_size=10)
    assert ema.network.running_mean.tolist() == [7.0, 7.0, 7.0]  # type: ignore[union-attr, operator]
