"""The floor: an objective's network evaluations and its optimizer's step, and nothing else."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.pipeline.config.training import TrainConfig
from fewstep.students.continuous import jvp
from fewstep.teachers.interfaces import Objective
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
    """Steps with as many evaluations as `Objective.cost` has, of networks of their own; shares come up now and then.

    There are as many networks that are trained as the objective has groups of that many weights.
    """

    def __init__(self, objective: Objective, config: TrainConfig, shape: tuple[int, int, int]) -> None:
        network = bare(objective.network)
        weights = sum(each.numel() for each in network.parameters())
        groups = [sum(each.numel() for each in group["params"]) for group in objective.parameter_groups()]
        copies = [
            copy.deepcopy(network).requires_grad_(True) for _ in range(max(1, sum(n > weights / 2 for n in groups)))
        ]
        self.networks = [Bare(each.train(), shape, config.batch_size) for each in copies]
        parameters = [each for network in copies for each in network.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, config.learning_rate, fused=True)
        self.cost, self.steps, self.trained = objective.cost, 0, 0
        device = self.networks[0].x.device.type
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16")

    def __call__(self) -> None:
        """One step."""
        with self.autocast:
            for _ in range(self._due(self.cost.target + self.cost.teacher)):
                with torch.no_grad():
                    self.networks[0]()
            for _ in range(self._due(self.cost.jvp)):
                self._derivative(self.networks[0])
            for _ in range(self._due(self.cost.student)):
                network = self.networks[self.trained % len(self.networks)]
                network().float().square().mean().backward()
                self.trained += 1
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def _due(self, evaluations: float) -> int:
        """How many of them this step has: the running sum, rounded down."""
        before, after = (math.floor(steps * evaluations + 1e-6) for steps in (self.steps, self.steps + 1))
        return after - before

    @staticmethod
    @torch.no_grad()
    def _derivative(network: Bare) -> None:
        def output(x: Tensor, time: Tensor) -> Tensor:
            return network.network(x, time, **network.labels).sample

        inputs = (network.x, network.time)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(network.x.device.type, enabled=False):
            jvp(output, inputs, tuple(map(torch.ones_like, inputs)))
