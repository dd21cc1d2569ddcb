"""What the teachers' tests share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def draws() -> Callable[[int], Callable[[], Tensor]]:
    """draws(num): a function giving [num,1,8,8], image i from a generator of seed i, as stock pipelines draw."""

    def make(num: int) -> Callable[[], Tensor]:
        generators = [torch.Generator("cpu").manual_seed(index) for index in range(num)]
        return lambda: torch.cat([torch.randn((1, 1, 8, 8), generator=generator) for generator in generators])

    return make
