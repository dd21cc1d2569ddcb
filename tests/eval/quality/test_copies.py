"""Near-copies of training images: planted ones are found, fresh images are not."""

import pytest
import torch

from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.quality.copies import SHARE, TrainingFeatures, TrainingImages


@pytest.fixture(scope="module")
def split():
    images = digits()[0][torch.randperm(1797, generator=torch.Generator().manual_seed(1))]
    return images[:1297], images[1297:]


def test_one_percent_of_the_training_images_have_a_neighbour_within_the_threshold(split):
    training = TrainingImages(split[0], mirrored=False)
    others = training.nearest(split[0], leave_out=torch.arange(1297))
    assert others.share(training.threshold) == pytest.approx(SHARE, abs=0.001)
    assert bool((others.index != torch.arange(1297)).all())


def test_planted_copies_are_found_and_held_out_images_are_not(split):
    training = TrainingImages(split[0], mirrored=False)
    held_out = split[1].clone()
    assert training.nearest(held_out).share(training.threshold) < 0.04  # 500 images at 1 %: 20 would be 7 deviations
    held_out[:50] = split[0][100:150]
    held_out[50:100] = (split[0][:50].int() + 1).clamp(0, 255).to(torch.uint8)  # one grey level brighter
    neighbours = training.nearest(held_out)
    assert torch.equal(neighbours.index[:50], torch.arange(100, 150))
    assert bool((neighbours.distance[:50] == 0).all())
    assert 0.2 <= neighbours.share(training.threshold) < 0.24


def test_nearest_is_that_of_an_exhaustive_search(split):
    training = TrainingImages(split[0], mirrored=False)
    exact = torch.cdist(split[1].flatten(1).double(), split[0].flatten(1).double())
    assert torch.allclose(training.nearest(split[1]).distance, exact.min(1).values)


def test_a_mirrored_copy_counts_only_where_training_mirrored(split):
    flipped = split[0][:20].flip(-1)
    plain, mirrored = TrainingImages(split[0], mirrored=False), TrainingImages(split[0], mirrored=True)
    assert plain.nearest(flipped).share(plain.threshold) < 0.2
    neighbours = mirrored.nearest(flipped)
    assert neighbours.share(mirrored.threshold) == 1
    assert torch.equal(neighbours.index, torch.arange(20))


def test_planted_copies_are_found_in_features_and_held_out_images_are_not(split):
    extractor = load_extractor("digits-cnn", None, "cpu")
    training = TrainingFeatures(extractor(split[0]))
    noise = torch.randint(-5, 6, split[0].shape, generator=torch.Generator().manual_seed(0))
    copies = (split[0].int() + noise).clamp(0, 255).to(torch.uint8)
    found = training.nearest(extractor(copies))
    assert found.share(training.threshold) > 0.99
    assert (found.index == torch.arange(1297)).double().mean() > 0.99
    assert training.nearest(extractor(split[1])).share(training.threshold) < 0.04
