"""FD at infinitely many images, on Gaussians whose distance is known."""

import numpy as np
import pytest
import torch

from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.quality.extrapolation import Extrapolation
from fewstep.eval.quality.metrics import Statistics, frechet_distance, statistics

DIM = 24
REFERENCE = Statistics(np.zeros(DIM), np.eye(DIM))
SHIFT = 0.1  # of each mean: the true distance is DIM * SHIFT**2


def sample(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return SHIFT + torch.randn(count, DIM, generator=generator)


def test_the_bias_of_few_images_is_taken_away():
    extrapolation, true = Extrapolation(REFERENCE), DIM * SHIFT**2
    found = [extrapolation(sample(seed, 400)) for seed in range(40)]
    plain = [frechet_distance(statistics(sample(seed, 400)), REFERENCE) for seed in range(40)]
    mean = np.mean([each[0] for each in found if each])
    standard_error = np.std([each[0] for each in found if each]) / 40**0.5
    assert np.mean(plain) - true > 0.3  # about 0.36: (D^2/2 + ...) / n
    assert abs(mean - true) < 5 * standard_error + 0.1 * (np.mean(plain) - true)  # 5 sigma: one in two million


def test_its_distance_is_torch_fidelity_s():
    features = load_extractor("digits-cnn", None, "cpu")(digits()[0])
    a, b = statistics(features[:900]), statistics(features[900:])
    assert Extrapolation(b).distance(a) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_below_twice_the_feature_size_there_is_none():
    extrapolation = Extrapolation(REFERENCE)
    assert extrapolation(sample(0, 2 * DIM - 1)) is None
    found = extrapolation(sample(0, 2 * DIM))
    assert found is not None
    assert found[1] > 0
