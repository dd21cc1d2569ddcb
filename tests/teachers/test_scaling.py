"""Networks of every prediction type are one denoiser; scalings against their formulas, and through JSON."""

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.teachers.interfaces import Condition, Space, per_image
from fewstep.teachers.load import PREDICTIONS, ddpm_model
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import (
    EDM,
    SCALINGS,
    VE,
    Consistency,
    Discrete,
    Epsilon,
    FlowMatching,
    Sample,
    Scaling,
    VPrediction,
    scaling_from_json,
    scaling_to_json,
)
from fewstep.teachers.schedule import vp_sigmas, vp_table

SIGMAS = torch.tensor([0.0101, 0.05, 0.3, 1.0, 4.0, 20.0, 80.0, 157.0], dtype=torch.float64)


class Stand(nn.Module):
    """A fixed function v(x_vp, t), answering in the terms of `prediction`, with `extra` more output channels."""

    def __init__(self, scheduler: DDPMScheduler, prediction: str, extra: int = 0) -> None:
        super().__init__()
        self.config = {"sample_size": 4, "in_channels": 1}
        self.log_sigmas = vp_sigmas(scheduler.alphas_cumprod).log()
        self.prediction, self.extra = prediction, extra

    def forward(self, x_vp: Tensor, timestep: Tensor) -> SimpleNamespace:
        low = timestep.long().clamp(max=len(self.log_sigmas) - 2)
        fraction = timestep - low
        log_sigma = (1 - fraction) * self.log_sigmas[low] + fraction * self.log_sigmas[low + 1]
        s = log_sigma.exp().reshape(-1, 1, 1, 1)
        alpha, beta = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
        v = torch.tanh(0.7 * x_vp + timestep.reshape(-1, 1, 1, 1) / 500)
        answers = {"v_prediction": v, "epsilon": alpha * v + beta * x_vp, "sample": alpha * x_vp - beta * v}
        output = answers[self.prediction]
        return SimpleNamespace(sample=torch.cat([output, *[torch.full_like(output, 99.0)] * self.extra], dim=1))


def stand_in(prediction: Any, extra: int = 0) -> Preconditioned:
    scheduler = DDPMScheduler(prediction_type=prediction)
    network: Any = Stand(scheduler, prediction, extra)
    return ddpm_model(network, scheduler)


def noisy(sigmas: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand((len(sigmas), 1, 4, 4), generator=generator, dtype=torch.float64) * 2 - 1
    return x_0 + sigmas.reshape(-1, 1, 1, 1) * torch.randn(x_0.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_prediction_types_built_from_one_another_give_the_same_denoiser(prediction: str):
    x = noisy(SIGMAS)
    of_v, of_other = stand_in("v_prediction")(x, SIGMAS), stand_in(prediction)(x, SIGMAS)
    # outputs are float32: an epsilon output's rounding of 2**-24 is multiplied by sigma
    error = (of_v - of_other).abs().amax(dim=(1, 2, 3))
    assert (error <= 2e-6 + 1e-6 * SIGMAS).all(), error


def test_small_sigma_uses_the_first_timestep():
    sigma = torch.tensor([0.002], dtype=torch.float64)
    x = noisy(sigma)
    seen = []
    teacher = stand_in("v_prediction")
    teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    denoised = teacher(x, sigma)
    assert seen[0].tolist() == [0.0]
    assert (denoised - x).abs().max() < 0.01


def test_channels_of_a_learned_variance_are_ignored():
    sigma = torch.tensor([0.3, 5.0], dtype=torch.float64)
    x = noisy(sigma)
    with_variance = stand_in("epsilon", extra=1)(x, sigma)
    assert torch.equal(with_variance, stand_in("epsilon")(x, sigma))
    assert with_variance.shape == x.shape


def test_noise_levels_shape_and_clamp_are_those_of_the_schedule():
    space = stand_in("v_prediction").space
    assert space.shape == (1, 4, 4)
    assert space.sigma_min == pytest.approx(0.0100005, rel=2e-4)
    assert space.sigma_max == pytest.approx(157.407, abs=1e-2)
    assert space.clamp == (-1, 1)
    network: Any = Stand(DDPMScheduler(), "epsilon")
    assert ddpm_model(network, DDPMScheduler(clip_sample=False)).space.clamp is None


def test_an_infinite_last_level_is_no_noise_level_but_is_evaluated():
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    network: Any = Stand(DDPMScheduler(), "v_prediction")
    space = ddpm_model(network, scheduler).space
    assert vp_sigmas(scheduler.alphas_cumprod)[-1] == math.inf
    assert space.sigma_max == pytest.approx(float(vp_sigmas(scheduler.alphas_cumprod)[-2]))
    assert space.table is not None
    assert bool(space.table.isfinite().all())


def test_labels_reach_a_conditional_network_and_no_other(tiny_unet: Callable[..., UNet2DModel]):
    seen = []

    class Network(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
            seen.append(class_labels)
            return SimpleNamespace(sample=x)

    labels, sigma = torch.tensor([3, 1]), torch.tensor([0.5, 2.0])
    for num_classes in (10, None):
        space = Space(shape=(1, 4, 4), sigma_min=0.01, sigma_max=80.0, num_classes=num_classes)
        Preconditioned(Network(), EDM(), space)(noisy(sigma).float(), sigma, Condition(labels=labels))
    assert seen[0] is labels
    assert seen[1] is None


def table() -> Tensor:
    return vp_table(DDPMScheduler().alphas_cumprod)


def expected(name: str, x: Tensor, s: Tensor, output: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """D(x; s) as the papers write it, float64; output(input, timestep) is the network's."""
    root, t = (1 + s**2).sqrt(), torch.from_numpy(_interpolated(s)).reshape(-1, 1, 1, 1)
    sd, ln = 0.5, s.log()
    return {
        "epsilon": lambda: x - s * output(x / root, t),
        "v_prediction": lambda: x / (1 + s**2) - s / root * output(x / root, t),
        "sample": lambda: output(x / root, t),
        "edm": lambda: (
            sd**2 / (s**2 + sd**2) * x + s * sd / (s**2 + sd**2).sqrt() * output(x / (s**2 + sd**2).sqrt(), ln / 4)
        ),
        "ve": lambda: x + s**2 * output(x, s),
        "flow_matching": lambda: x / (1 + s) - s / (1 + s) * output(x / (1 + s), 1000 * s / (1 + s)),
        "consistency": lambda: (
            1 / ((s - 0.002) ** 2 + 1) * x + (s - 0.002) / (s**2 + 1).sqrt() * output(x / (s**2 + 1).sqrt(), 250 * ln)
        ),
    }[name]()


def _interpolated(s: Tensor) -> Any:
    import numpy as np

    return np.interp(s.flatten().log().numpy(), table().log().numpy(), np.arange(1000.0))


def made(name: str) -> Any:
    kind: Any = SCALINGS[name]
    return kind(table()) if issubclass(kind, Discrete) else kind()


@pytest.mark.parametrize("name", SCALINGS)
def test_each_scaling_is_its_papers_formula(name: str):
    def output(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.tanh(x + timestep / 300)

    class Network(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor) -> SimpleNamespace:
            # a network's output is float32; in float64 here, so that the scaling is what is compared
            return SimpleNamespace(sample=Exact(output(x, per_image(timestep))))

    class Exact(Tensor):
        def float(self) -> Tensor:
            return torch.Tensor.double(self)

    model = Preconditioned(Network(), made(name), Space(shape=(1, 4, 4), sigma_min=0.01, sigma_max=80.0))
    x = noisy(SIGMAS)
    torch.testing.assert_close(
        torch.as_tensor(model(x, SIGMAS)).as_subclass(Tensor),
        expected(name, x, per_image(SIGMAS), output),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize(
    "scaling",
    [
        *(kind(torch.tensor([0.01, 0.5, 3.3, 157.1], dtype=torch.float64)) for kind in (Epsilon, VPrediction, Sample)),
        EDM(sigma_data=0.37),
        VE(),
        FlowMatching(),
        Consistency(sigma_min=0.0021, sigma_data=0.7),
    ],
    ids=lambda scaling: scaling.name,
)
def test_a_scaling_read_back_from_json_is_the_same_function(scaling: Scaling):
    again = scaling_from_json(json.loads(json.dumps(scaling_to_json(scaling))), "file")
    assert type(again) is type(scaling)
    for sigma in (SIGMAS, SIGMAS.float()):
        for before, after in zip(scaling(sigma), again(sigma), strict=True):
            assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"name": "score"}, r"^f\.json: scaling: 'score': use one of epsilon, v_prediction, sample, edm"),
        ({"name": "edm", "sigma": 1.0}, r"^f\.json: scaling\.sigma: is no number of edm"),
        ({"name": "edm", "sigma_data": -1.0}, r"^f\.json: scaling\.sigma_data: -1\.0: must be greater than 0"),
        ({"name": "edm", "sigma_data": "1"}, "is not of the form"),
        ({"name": "epsilon", "table": [1.0, 0.5]}, r"^f\.json: scaling\.table: must be two or more ascending"),
        ({"name": "epsilon"}, r"^f\.json: scaling\.table: must be"),
        ([], "is no JSON object"),
    ],
)
def test_what_is_no_scaling_is_refused(value: object, fault: str):
    with pytest.raises(UserError, match=fault):
        scaling_from_json(value, "f.json")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_without_noise_is_euler_in_sigma(prediction: Any):
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)
    sigmas = vp_sigmas(scheduler.alphas_cumprod)
    scaling = SCALINGS[prediction](sigmas)
    generator = torch.Generator().manual_seed(1)
    for t, t_next in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        s, s_next = sigmas[t], sigmas[t_next]
        x = torch.randn((2, 1, 4, 4), generator=generator, dtype=torch.float64) * (1 + s**2).sqrt()
        output = torch.randn((2, 1, 4, 4), generator=generator, dtype=torch.float64)
        stock: Any = scheduler.step(output, int(t), x / (1 + s**2).sqrt(), eta=0.0)
        factors = scaling(s.reshape(1))
        slope = (x - (factors.c_skip * x + factors.c_out * output)) / s
        euler = x + (s_next - s) * slope
        torch.testing.assert_close(stock.prev_sample * (1 + s_next**2).sqrt(), euler, atol=1e-11, rtol=1e-11)
