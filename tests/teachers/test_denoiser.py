"""Networks of every prediction type are one denoiser; DDIM is Euler in sigma."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from fewstep.teachers.denoiser import PREDICTIONS, VPDenoiser, denoised_from_output
from fewstep.teachers.schedule import vp_sigmas


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


def stand_in(prediction: Any, extra: int = 0) -> VPDenoiser:
    scheduler = DDPMScheduler(prediction_type=prediction)
    network: Any = Stand(scheduler, prediction, extra)
    return VPDenoiser(network, scheduler)


def noisy(sigmas: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand((len(sigmas), 1, 4, 4), generator=generator, dtype=torch.float64) * 2 - 1
    return x_0 + sigmas.reshape(-1, 1, 1, 1) * torch.randn(x_0.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_prediction_types_built_from_one_another_give_the_same_denoiser(prediction: str):
    sigma = torch.tensor([0.0101, 0.05, 0.3, 1.0, 4.0, 20.0, 80.0, 157.0], dtype=torch.float64)
    x = noisy(sigma)
    of_v = stand_in("v_prediction").denoise(x, sigma)
    of_other = stand_in(prediction).denoise(x, sigma)
    # outputs are float32: an epsilon output's rounding of 2**-24 is multiplied by sigma
    error = (of_v - of_other).abs().amax(dim=(1, 2, 3))
    assert (error <= 2e-6 + 1e-6 * sigma).all(), error


def test_small_sigma_uses_the_first_timestep():
    sigma = torch.tensor([0.002], dtype=torch.float64)
    x = noisy(sigma)
    seen = []
    teacher = stand_in("v_prediction")
    teacher.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    denoised = teacher.denoise(x, sigma)
    assert seen[0].tolist() == [0.0]
    assert (denoised - x).abs().max() < 0.01


def test_channels_of_a_learned_variance_are_ignored():
    sigma = torch.tensor([0.3, 5.0], dtype=torch.float64)
    x = noisy(sigma)
    with_variance = stand_in("epsilon", extra=1).denoise(x, sigma)
    assert torch.equal(with_variance, stand_in("epsilon").denoise(x, sigma))
    assert with_variance.shape == x.shape


def test_noise_levels_and_shape_are_those_of_the_schedule():
    teacher = stand_in("v_prediction")
    assert teacher.shape == (1, 4, 4)
    assert teacher.sigma_min == pytest.approx(0.0100005, rel=2e-4)
    assert teacher.sigma_max == pytest.approx(157.407, abs=1e-2)


def test_unknown_prediction_is_an_error_naming_the_known():
    with pytest.raises(ValueError, match=r"'score'.*epsilon, v_prediction, sample"):
        denoised_from_output(torch.zeros(1), torch.zeros(1), torch.ones(1), "score")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_without_noise_is_euler_in_sigma(prediction: Any):
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)
    sigmas = vp_sigmas(scheduler.alphas_cumprod)
    generator = torch.Generator().manual_seed(1)
    for t, t_next in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        s, s_next = sigmas[t], sigmas[t_next]
        x = torch.randn((2, 1, 4, 4), generator=generator, dtype=torch.float64) * (1 + s**2).sqrt()
        output = torch.randn((2, 1, 4, 4), generator=generator, dtype=torch.float64)
        stock: Any = scheduler.step(output, int(t), x / (1 + s**2).sqrt(), eta=0.0)
        slope = (x - denoised_from_output(output, x, s, prediction)) / s
        euler = x + (s_next - s) * slope
        torch.testing.assert_close(stock.prev_sample * (1 + s_next**2).sqrt(), euler, atol=1e-11, rtol=1e-11)
