"""Weights in one piece: the same numbers in the same layouts, the same updates as of one tensor after the other."""

import copy

import pytest
import torch
from torch import nn

from fewstep.pipeline.training.ema import EMA
from fewstep.pipeline.training.flat import Flat, flattened


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)


def test_tensors_keep_their_numbers_and_layouts_and_become_views_of_one():
    tensors = [torch.arange(6.0).reshape(2, 3), torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)]
    before = [(each.clone(), each.stride()) for each in tensors]
    flat = flattened(tensors)
    for each, (values, stride) in zip(tensors, before, strict=True):
        assert torch.equal(each, values)
        assert each.stride() == stride
    flat.zero_()
    assert not any(each.any() for each in tensors)


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"weight_decay": 0.0, "betas": (0.5, 0.9)}])
def test_an_optimizer_makes_of_the_whole_what_it_makes_of_its_parts(options):
    one, other = network(), network()
    flat, whole = Flat(one.parameters()), None
    optimizers = [torch.optim.AdamW([flat.whole], **options), torch.optim.AdamW(other.parameters(), **options)]
    for step in range(5):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for model in (one, other):
            model(x).square().mean().backward()
        whole = flat.gather()
        assert whole is not None
        assert all(each.grad is None for each in one.parameters())
        for optimizer in optimizers:
            optimizer.step()
        other.zero_grad()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_a_gradient_in_another_layout_than_its_weight_is_put_in_order():
    weight = nn.Parameter(torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last))
    flat = Flat([weight])
    weight.grad = weight.detach().clone(memory_format=torch.contiguous_format)
    assert torch.equal(flat.gather(), flat.whole)  # type: ignore[arg-type]


def test_a_group_without_gradients_has_none_and_a_weight_without_one_has_zeros():
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    flat = Flat(weights)
    assert flat.gather() is None
    weights[1].grad = torch.full((3,), 2.0)
    assert flat.gather().tolist() == [0, 0, 2, 2, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("most", [0.1, 10.0])
def test_a_norm_is_held_as_torch_holds_it(most):
    one, other = network(), network()
    flat, x = Flat(one.parameters()), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for model in (one, other):
        model(x).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(other.parameters(), most)
    torch.testing.assert_close(flat.clip(most), norm)
    theirs = Flat(other.parameters()).gather()
    torch.testing.assert_close(flat.whole.grad, theirs)
    assert flat.clip(most) == 0  # it has been taken
    assert flat.whole.grad is None


def test_weights_that_are_not_trained_stay_out():
    model = network()
    model[0].weight.requires_grad_(False)
    flat = Flat(model.parameters())
    assert flat.whole.numel() == sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert not flat.holds(list(model.parameters()))


def test_an_average_in_one_piece_is_the_average():
    one, other = network(), network()
    averages = [EMA(one, 1.0), EMA(other, 1.0)]
    averages[0].lie_like([Flat([nn.Parameter(torch.ones(1))]), Flat(one.parameters())])
    for model, ema in zip((one, other), averages, strict=True):
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(3)
        ema.update(images=100_000, batch_size=500)
    for mine, theirs in zip(*(each.network.parameters() for each in averages), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad
    copied = copy.deepcopy(averages[0].network)
    assert all(map(torch.equal, copied.parameters(), averages[1].network.parameters()))
