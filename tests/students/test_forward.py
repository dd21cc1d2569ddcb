"""Forward derivatives are those of torch.func."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.students import forward
from fewstep.students.forward import jvp


def expect_torch_s(function: Any, inputs: tuple[Tensor, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    tangents = tuple(torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in inputs)
    found = jvp(function, inputs, tangents)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(function, inputs, tangents)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
        assert not mine.requires_grad


def test_of_a_network(tiny_unet: Any):
    network, generator = tiny_unet(seed=2).requires_grad_(True), torch.Generator().manual_seed(0)
    for each in network.parameters():
        each.data += 0.1 * torch.randn(each.shape, generator=generator)  # its last layer begins with zeros
    inputs = torch.randn((3, 1, 8, 8), generator=generator), 1000 * torch.rand(3, generator=generator)
    expect_torch_s(lambda x, time: network(x, time).sample, inputs)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.conv2d(x, torch.ones(4, 2, 3, 3), torch.ones(4), stride=2, padding=1, groups=2),
        lambda x: functional.group_norm(x.to(memory_format=torch.channels_last), 2),
        lambda x: functional.group_norm(x, 2, torch.arange(4.0), torch.ones(4), eps=0.1),
        lambda x: functional.group_norm(x.flatten(2), 4, torch.arange(4.0)),
        lambda x: functional.group_norm(x.to(memory_format=torch.channels_last).flatten(2), 2),
        lambda x: functional.linear(x, torch.arange(12.0).reshape(2, 6)),
        lambda x: (2 * x - 1) / 3 + 1,
        lambda x: torch.add(x, x, alpha=2),
        lambda x: x / (x.square() + 1),
        lambda x: 3 / x,
    ],
)
def test_of_a_layer(function: Any):
    expect_torch_s(function, (torch.randn((2, 4, 6, 6), generator=torch.Generator().manual_seed(0)) + 2,))


def test_an_operation_in_place_changes_the_derivative_of_its_own_value_alone():
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        y.mul_(3)
        return x * 1.0, y

    ones = torch.ones(2)
    _, derivatives = jvp(function, (torch.zeros(2),), (ones,))
    assert [each.tolist() for each in derivatives] == [[1, 1], [3, 3]]
    assert ones.tolist() == [1, 1]


def test_the_rules_are_what_a_network_is_derived_by(tiny_unet: Any, monkeypatch: pytest.MonkeyPatch):
    used = set()
    for rules in (forward._LAYERS, forward._WITH_NUMBERS):
        for function, rule in list(rules.items()):
            monkeypatch.setitem(
                rules, function, lambda *args, rule=rule, **options: used.add(rule) or rule(*args, **options)
            )
    network, x = tiny_unet(), torch.randn(2, 1, 8, 8)
    jvp(lambda x, time: network(x, time).sample + 1, (x, torch.ones(2)), (x, torch.ones(2)))
    assert used == {forward._conv2d, forward._linear, forward._group_norm, forward._shifted, forward._scaled}


def test_of_several_outputs_one_of_which_stays():
    outputs, derivatives = jvp(lambda x: (x**2, torch.ones(3)), (torch.full((2,), 3.0),), (torch.ones(2),))
    assert (outputs[0].tolist(), derivatives[0].tolist()) == ([9, 9], [6, 6])
    assert (outputs[1].tolist(), derivatives[1].tolist()) == ([1, 1, 1], [0, 0, 0])
