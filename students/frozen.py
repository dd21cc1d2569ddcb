"""A model evaluated as a function of its inputs alone: none of its parameters gets a gradient."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from fewstep.teachers.interfaces import Denoiser


def frozen_call(model: Denoiser | nn.Module, *inputs: Any) -> Tensor:  # noqa: ANN401 - as the model's own call
    """model(*inputs), with derivatives with respect to the inputs and not to the weights, whether they ask or not."""
    if not isinstance(model, nn.Module):
        return model(*inputs)
    return functional_call(model, {name: weight.detach() for name, weight in model.named_parameters()}, inputs)
