"""Whether images are found to be of their class by the real ones nearest to them."""

import pytest
import torch

from fewstep.eval.quality.classes import RealClasses
from fewstep.eval.quality.metrics import frechet_distance, statistics

NAMES = ("a", "b", "c")
CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])


def drawn(count: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [count, 2] around the centre of their class [count]."""
    labels, generator = torch.arange(count) % 3, torch.Generator().manual_seed(seed)
    return CENTRES[labels] + spread * torch.randn(count, 2, generator=generator), labels


def test_an_image_is_of_the_class_of_its_neighbours_and_fd_is_by_class():
    real = RealClasses(*drawn(600, 0), NAMES)
    features, asked = drawn(90, 1)
    metrics = real(features, asked)
    assert metrics["class_agreement"] == real.real_agreement == 1.0
    of_one = statistics(features[asked == 1]), statistics(real.features[real.labels == 1])
    assert metrics["fd_class_1"] == pytest.approx(frechet_distance(*of_one))
    swapped = real(features, (asked + (torch.arange(90) < 30).long()) % 3)
    assert swapped["class_agreement"] == pytest.approx(60 / 90)


def test_classes_that_overlap_are_confused_in_real_images_too():
    real = RealClasses(*drawn(600, 0, spread=8.0), NAMES)
    assert 0.4 < real.real_agreement < 0.8  # an image itself is not among its neighbours: it would vote for itself


def test_a_class_of_few_images_has_no_distance():
    real = RealClasses(*drawn(600, 0), NAMES)
    features, asked = drawn(7, 1)
    assert set(real(features, asked)) == {"class_agreement", "fd_class_0"}
