"""The floor: the network calls of a step and its optimizer's, and nothing else."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fewstep.pipeline.config.training import TrainConfig
from fewstep.pipeline.speed.calls import Call
from fewstep.students.forward import jvp
from fewstep.teachers.preconditioned import Preconditioned


def bare(network: nn.Module) -> nn.Module:
    """The diffusers network inside a model."""
    return network.network if isinstance(network, Preconditioned) else network


class Bare:
    """A diffusers network with inputs that lie ready on its device: one evaluation of a whole batch."""

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], batch: int) -> None:
        weight = next(network.parameters())
        generator = torch.Generator("cpu").manual_seed(0)
        self.network = network
        self.x = torch.randn((batch, *shape), generator=generator).to(weight.device)
        self.time = (1000 * torch.rand(batch, generator=generator)).to(weight.device)
        classes = getattr(network, "config", {}).get("num_class_embeds")
        self.labels = {} if classes is None else {"class_labels": torch.zeros_like(self.time, dtype=torch.int64)}

    def __call__(self) -> Tensor:
        """The network's output [B,C,H,W]."""
        return self.network(self.x, self.time, **self.labels).sample


class Floor:
    """Steps that make the same calls of networks as those that it is told, on copies, and an optimizer's step.

    calls: those of the next step. The inputs lie ready; the loss of a call is the square of its output. Copies are made
    when their network is first called, and are not compiled where that is.
    """

    def __init__(self, calls: Callable[[], Sequence[Call]], config: TrainConfig, shape: tuple[int, int, int]) -> None:
        self.calls, self.config, self.shape = calls, config, shape
        self._copies: dict[nn.Module, nn.Module] = {}
        self._ready: dict[tuple[nn.Module, int], Bare] = {}
        self._optimizers: dict[nn.Module, torch.optim.AdamW] = {}

    def __call__(self) -> None:
        """One step."""
        bf16 = self.config.precision == "bf16"
        for call in self.calls():
            network = self._copy(call)
            with torch.autocast(network.x.device.type, torch.bfloat16, enabled=bf16):
                if call.purpose == "output":
                    with torch.no_grad():
                        network()
                elif call.purpose == "derivative":
                    _derivative(network)
                else:
                    self._gradient(call, network)
        for optimizer in self._optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _copy(self, call: Call) -> Bare:
        network, images = call.network, call.images
        if network not in self._copies:
            self._copies[network] = copy.deepcopy(network).requires_grad_(False)
        if (network, images) not in self._ready:
            self._ready[network, images] = Bare(self._copies[network], self.shape, images)
        return self._ready[network, images]

    def _gradient(self, call: Call, network: Bare) -> None:
        weights, parameters = call.purpose == "weights", list(network.network.parameters())
        if parameters[0].requires_grad != weights:
            network.network.requires_grad_(weights)
        if weights and call.network not in self._optimizers:
            self._optimizers[call.network] = torch.optim.AdamW(parameters, self.config.learning_rate, fused=True)
        network.x.requires_grad_(not weights)
        network().float().square().mean().backward()
        network.x.requires_grad_(False).grad = None


def _derivative(network: Bare) -> None:
    def output(x: Tensor, time: Tensor) -> Tensor:
        return network.network(x, time, **network.labels).sample

    inputs = (network.x, network.time)
    jvp(output, inputs, tuple(map(torch.ones_like, inputs)))
