"""The teacher's training loss."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fewstep.teachers.interfaces import Batch, Progress
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.objective import DDPMObjective

PROGRESS = Progress(step=0, total_steps=10, images=0)


class Oracle(nn.Module):
    """A network that knows the clean images, and remembers the timesteps it was asked at."""

    def __init__(self, x_0: Tensor, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.x_0, self.scheduler = x_0, scheduler
        self.timesteps = torch.empty(0)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> SimpleNamespace:
        self.timesteps = timesteps
        abar = self.scheduler.alphas_cumprod[timesteps].double().reshape(-1, 1, 1, 1)
        eps = (x_t - abar.sqrt() * self.x_0) / (1 - abar).sqrt()
        v = abar.sqrt() * eps - (1 - abar).sqrt() * self.x_0
        return SimpleNamespace(sample=eps if self.scheduler.config["prediction_type"] == "epsilon" else v)


def images(num: int) -> Tensor:
    return torch.rand((num, 1, 8, 8), generator=torch.Generator().manual_seed(7)) * 2 - 1


def oracle(num: int, prediction: Any, total: int = 1000) -> tuple[DDPMObjective, Oracle]:
    scheduler = build_scheduler(total, "linear", prediction)
    network: Any = Oracle(images(num), scheduler)
    return DDPMObjective(network, scheduler), network


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_of_a_perfect_predictor_is_zero(prediction: str):
    objective, _ = oracle(64, prediction)
    terms = objective(Batch(images=images(64)), PROGRESS, torch.Generator().manual_seed(0))
    assert terms.loss.shape == (64,)
    assert terms.loss.max() < 1e-8
    wrong = objective(Batch(images=-images(64)), PROGRESS, torch.Generator().manual_seed(0))
    assert wrong.loss.mean() > 0.1


def test_loss_is_a_function_of_the_generator_alone(tiny_unet: Callable[..., UNet2DModel]):
    objective = DDPMObjective(tiny_unet(), build_scheduler(1000, "linear", "v_prediction"))
    batch = Batch(images=images(6))
    torch.manual_seed(1)
    first = objective(batch, PROGRESS, torch.Generator().manual_seed(3)).loss
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = objective(batch, PROGRESS, torch.Generator().manual_seed(3)).loss
    other = objective(batch, PROGRESS, torch.Generator().manual_seed(4)).loss
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("num", [1, 7, 50, 1000])
def test_timesteps_cover_every_stratum_once(num: int):
    objective, network = oracle(num, "epsilon")
    terms = objective(Batch(images=images(num)), PROGRESS, torch.Generator().manual_seed(num))
    assert network.timesteps.dtype == torch.int64
    ordered = network.timesteps.sort().values.tolist()
    for index, timestep in enumerate(ordered):
        assert index * 1000 // num <= timestep <= (index + 1) * 1000 / num
        assert timestep <= 999
    assert torch.equal(terms.sigma, objective.sigmas[network.timesteps])
    if num > 1:
        assert network.timesteps.tolist() != ordered  # in random order


def test_parameters_are_the_networks(tiny_unet: Callable[..., UNet2DModel]):
    unet = tiny_unet()
    objective = DDPMObjective(unet, build_scheduler(1000, "linear", "epsilon"))
    assert len(list(objective.parameters())) == len(list(unet.parameters()))
    assert {key.split(".")[0] for key in objective.state_dict()} == {"network"}
    loss = objective(Batch(images=images(4)), PROGRESS, torch.Generator().manual_seed(0)).loss.mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
