"""Forward derivatives of networks: torch's own, with the layers that it is slow at by their formulas."""

import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@cache
def _load_rules() -> None:
    """Have torch load its rules of forward derivatives, which it does by a call that it warns of itself."""
    with warnings.catch_warnings(category=FutureWarning, action="ignore"), forward_ad.dual_level():
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@torch.no_grad()
def jvp(function: Callable[..., Any], inputs: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """The function's output, a tensor or several, and its derivative along the tangents of its inputs.

    Nothing of it has a gradient. Everything is in the inputs' precision, whatever autocast is on. Of a UNet
    `torch.func.jvp` gives the same in twice the time.
    """
    device = inputs[0].device.type
    _load_rules()
    with (
        forward_ad.dual_level(),
        torch.autocast(device, enabled=False),
        sdpa_kernel(SDPBackend.MATH),  # the other kernels of attention have no forward derivative
        _eager(),
        _Layers(),
    ):
        output = function(*map(forward_ad.make_dual, inputs, tangents))
        if isinstance(output, Tensor):
            return _parts(output)
        return tuple(zip(*map(_parts, output), strict=True))  # type: ignore[return-value]


def _eager() -> AbstractContextManager[None]:
    """Within, a compiled network is run as it was written: a graph knows no tangents."""
    compiling = "torch._dynamo" in sys.modules  # which setting the stance would import, for seconds
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def _parts(value: Tensor) -> tuple[Tensor, Tensor]:
    primal, tangent = forward_ad.unpack_dual(value)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


class _Layers(TorchFunctionMode):
    """Layers whose weights have no tangent, and arithmetic with numbers, which have none either.

    torch computes with tangents of zeros for them, and puts the derivative of a group norm together in Python.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        rule = _LAYERS.get(func)
        if func in _WITH_NUMBERS and not kwargs and isinstance(args[1], int | float):
            rule = partial(_WITH_NUMBERS[func], func)
        if rule is None or not args:
            return func(*args, **kwargs)
        primal, tangent = forward_ad.unpack_dual(args[0])
        if tangent is None:
            return func(*args, **kwargs)
        return forward_ad.make_dual(*rule(primal, tangent, *args[1:], **kwargs))


def _conv2d(
    x: Tensor,
    tangent: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,  # noqa: ANN401 - stride, padding and so on
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    return (
        functional.conv2d(x, weight, bias, *args, **kwargs),
        functional.conv2d(tangent, weight, None, *args, **kwargs),
    )


def _group_norm(
    x: Tensor,
    tangent: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Of y = w*z + b, z = (x - mean)/std, dz/dx is symmetric: what the kernel of gradients makes of dx is dz."""
    layout = torch.contiguous_format  # some releases of torch take no other, but for images on a processor
    if x.device.type == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    x, tangent = (each.contiguous(memory_format=layout) for each in (x, tangent))
    size = len(x), x.shape[1], x[0, 0].numel(), num_groups
    output, mean, rstd = torch.native_group_norm(x, weight, bias, *size, eps)
    mask = [True, False, False]
    moved, *_ = torch.ops.aten.native_group_norm_backward(tangent, x, mean, rstd, None, *size, mask)
    return output, moved if weight is None else moved * weight.reshape(-1, *[1] * (x.ndim - 2))


def _linear(x: Tensor, tangent: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return functional.linear(x, weight, bias), functional.linear(tangent, weight)


def _shifted(apply: Callable[..., Tensor], x: Tensor, tangent: Tensor, by: float) -> tuple[Tensor, Tensor]:
    return apply(x, by), tangent.clone()  # what may be changed in place is no other's


def _scaled(apply: Callable[..., Tensor], x: Tensor, tangent: Tensor, by: float) -> tuple[Tensor, Tensor]:
    return apply(x, by), apply(tangent, by)


_LAYERS: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    functional.conv2d: _conv2d,
    functional.linear: _linear,
    functional.group_norm: _group_norm,
}
_WITH_NUMBERS = {Tensor.add: _shifted, Tensor.sub: _shifted, Tensor.mul: _scaled, Tensor.div: _scaled}
