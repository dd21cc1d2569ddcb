"""What the students' tests share."""

from collections.abc import Callable

import pytest
from diffusers import UNet2DModel

from fewstep.students.consistency import ConsistencyModel


@pytest.fixture
def student(tiny_unet: Callable[..., UNet2DModel]) -> ConsistencyModel:
    """A consistency model of random weights, in evaluation mode."""
    return ConsistencyModel(tiny_unet(seed=5)).eval().requires_grad_(False)
