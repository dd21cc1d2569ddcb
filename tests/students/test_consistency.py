"""The consistency function: its boundary, its scalings, its sampling, and the stock scheduler's last step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from fewstep.students.consistency import ConsistencyModel, sample_consistency
from fewstep.students.grid import StepGrid
from fewstep.teachers.interfaces import Denoiser


def noise(num: int = 3, seed: int = 0) -> Tensor:
    return torch.randn((num, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("sigma_min", [0.002, 0.0011, 0.0100005, 0.03])
def test_boundary_is_the_identity(tiny_unet: Callable[..., UNet2DModel], sigma_min: float, sigma_data: float):
    model = ConsistencyModel(tiny_unet(), sigma_min=sigma_min, sigma_data=sigma_data)
    x = 3 * noise()
    with torch.no_grad():
        assert torch.equal(model(x, torch.full((3,), model.sigma_min)), x)
        assert not torch.equal(model(x, torch.full((3,), 2 * model.sigma_min)), x)


def test_scalings_are_those_of_the_paper(student: ConsistencyModel):
    sigma = torch.tensor([0.01, 0.7, 80.0])
    x = noise() * sigma.reshape(-1, 1, 1, 1)
    for index, s in enumerate(sigma.tolist()):
        one = x[index : index + 1]
        raw = student.network(one / (s**2 + 1) ** 0.5, torch.tensor([250 * np.log(s)])).sample
        expected = one / ((s - 0.002) ** 2 + 1) + (s - 0.002) / (s**2 + 1) ** 0.5 * raw
        torch.testing.assert_close(student(x, sigma)[index : index + 1], expected, atol=2e-5, rtol=1e-5)


def test_a_student_is_a_denoiser(student: ConsistencyModel):
    x, sigma = 2 * noise(), torch.tensor([0.1, 1.0, 10.0])
    assert isinstance(student, Denoiser)
    assert student(x, sigma).shape == x.shape
    assert student.space.shape == (1, 8, 8)


def test_noise_bounds_are_float32_values(tiny_unet: Callable[..., UNet2DModel]):
    model = ConsistencyModel(tiny_unet(), sigma_min=0.0011, sigma_max=79.3)
    assert model.sigma_min == float(np.float32(0.0011)) != 0.0011
    assert model.sigma_max == float(np.float32(79.3)) != 79.3


def test_stock_scheduler_is_finite_for_any_sigma_min(tiny_unet: Callable[..., UNet2DModel]):
    """Unrounded, about a fifth of these values give NaN in the scheduler's last step."""
    unet = tiny_unet()
    exponents = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [0.0011, 0.0022, 0.0100005, *(10 ** (-4 + 3 * exponents)).tolist()]
    for value in values:
        model = ConsistencyModel(unet, sigma_min=value)
        scheduler = model.grid.scheduler(model.sigma_min, model.sigma_max)
        for steps in (1, 2, 4):
            scheduler.set_timesteps(steps, device=torch.device("cpu"))
            x = torch.ones(1, 1, 2, 2) * scheduler.init_noise_sigma
            for timestep in scheduler.timesteps:
                answer: Any = scheduler.step(torch.zeros_like(x), timestep, x, torch.Generator().manual_seed(0))
                x = answer.prev_sample
            assert torch.isfinite(x).all(), (value, steps)


def test_one_step_is_the_function_at_the_largest_noise(student: ConsistencyModel):
    z = noise()
    expected = student(80 * z, 80.0).clamp(-1, 1)
    assert torch.equal(sample_consistency(student, [80.0], lambda: z), expected)


def test_a_further_step_renoises_the_clamped_image(student: ConsistencyModel):
    first, second = noise(seed=1), noise(seed=2)
    waiting = [first, second]
    images = sample_consistency(student, [80.0, 0.8], lambda: waiting.pop(0))
    assert not waiting
    x = student(80 * first, torch.full((3,), 80.0)).clamp(-1, 1)
    x = x + (0.8**2 - student.sigma_min**2) ** 0.5 * second
    torch.testing.assert_close(images, student(x, torch.full((3,), 0.8)).clamp(-1, 1))
    assert images.abs().max() <= 1


def test_step_sigmas_are_those_of_the_grid(tiny_unet: Callable[..., UNet2DModel]):
    model = ConsistencyModel(tiny_unet(), sigma_max=40.0, grid=StepGrid(num_train_timesteps=9, rho=5.0))
    sigmas = model.step_sigmas(4)
    assert len(sigmas) == 4
    assert sigmas[0] == pytest.approx(40.0, rel=1e-6)
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[2] == model.step_sigmas(2)[1]


def test_a_clone_has_weights_of_its_own(student: ConsistencyModel):
    copy = student.clone()
    copy.network.conv_in.weight.data.zero_()
    assert student.network.conv_in.weight.abs().max() > 0
