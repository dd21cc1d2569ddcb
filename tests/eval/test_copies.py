"""Near-copies of training images: planted ones are found, fresh images are not."""

import pytest
import torch

from fewstep.eval.copies import SHARE, TrainingImages
from fewstep.eval.digits_cnn import digits


@pytest.fixture(scope="module")
def split():
    images = digits()[0][torch.randperm(1797, generator=torch.Generator().manual_seed(1))]
    return images[:1297], images[1297:]


def test_one_percent_of_the_training_images_have_a_neighbour_within_the_threshold(split):
    training = TrainingImages(split[0], mirrored=False)
    others = training.nearest(split[0], leave_out=torch.arange(1297))
    assert training.share(others) == pytest.approx(SHARE, abs=0.001)
    assert bool((others.index != torch.arange(1297)).all())


def test_planted_copies_are_found_and_held_out_images_are_not(split):
    training = TrainingImages(split[0], mirrored=False)
    held_out = split[1].clone()
    assert training.share(training.nearest(held_out)) < 0.04  # 500 images at 1 %: 20 would be 7 deviations
    held_out[:50] = split[0][100:150]
    held_out[50:100] = (split[0][:50].int() + 1).clamp(0, 255).to(torch.uint8)  # one grey level brighter
    neighbours = training.nearest(held_out)
    assert torch.equal(neighbours.index[:50], torch.arange(100, 150))
    assert bool((neighbours.distance[:50] == 0).all())
    assert 0.2 <= training.share(neighbours) < 0.24


def test_nearest_is_that_of_an_exhaustive_search(split):
    training = TrainingImages(split[0], mirrored=False)
    exact = torch.cdist(split[1].flatten(1).double(), split[0].flatten(1).double())
    assert torch.allclose(training.nearest(split[1]).distance, exact.min(1).values)


def test_a_mirrored_copy_counts_only_where_training_mirrored(split):
    flipped = split[0][:20].flip(-1)
    plain, mirrored = TrainingImages(split[0], mirrored=False), TrainingImages(split[0], mirrored=True)
    assert plain.share(plain.nearest(flipped)) < 0.2
    neighbours = mirrored.nearest(flipped)
    assert mirrored.share(neighbours) == 1
    assert torch.equal(neighbours.index, torch.arange(20))
