"""Noise keyed per image, float to uint8, generated images and grids."""

from collections.abc import Sequence

import pytest
import torch

from fewstep.errors import UserError
from fewstep.eval.images import Generated, TensorImages, grid, labels_for, to_uint8
from fewstep.eval.noise import KeyedNoise

SHAPE = (1, 4, 4)


class Blur:
    """A sampler that uses two draws and, when conditional, the label."""

    name, label, kind, nfe, networks, network_parameters = "teacher@two:2", "Two draws", "teacher", 2, (), 3
    shape: tuple[int, int, int] = SHAPE
    schedule: Sequence[float] = (1.0, 0.5)

    def __init__(self, num_classes: int | None = None):
        self.num_classes = num_classes

    def sample(self, noise, labels=None):
        x = 0.3 * noise.draw() + 0.2 * noise.draw()
        return x if labels is None else x * 0 + labels.view(-1, 1, 1, 1) / 10


def test_noise_of_an_image_does_not_depend_on_its_batch():
    whole, parts = KeyedNoise(SHAPE, 3, 0, 7), [KeyedNoise(SHAPE, 3, 0, 2), KeyedNoise(SHAPE, 3, 2, 7)]
    for _ in range(3):
        assert torch.equal(whole.draw(), torch.cat([part.draw() for part in parts]))


def test_noise_is_the_generators_own_sequence():
    noise = KeyedNoise(SHAPE, 2, 5, 6)
    generator = torch.Generator("cpu").manual_seed(2 * 2**20 + 5)
    for _ in range(2):
        assert torch.equal(noise.draw(), torch.randn((1, *SHAPE), generator=generator))


def test_noise_differs_between_seeds_images_and_calls():
    a, b = KeyedNoise(SHAPE, 0, 0, 2), KeyedNoise(SHAPE, 1, 0, 1)
    first = a.draw()
    assert len({tuple(x.flatten().tolist()) for x in (first[0], first[1], a.draw()[0], b.draw()[0])}) == 4


@pytest.mark.parametrize(("seed", "start", "stop"), [(4096, 0, 1), (-1, 0, 1), (0, 0, 2**20 + 1), (0, 3, 3)])
def test_noise_refuses_keys_that_would_collide(seed, start, stop):
    with pytest.raises(ValueError, match="outside"):
        KeyedNoise(SHAPE, seed, start, stop)


def test_every_grey_level_comes_back_and_the_range_is_clamped():
    levels = torch.arange(256)
    assert torch.equal(to_uint8((levels / 127.5 - 1).view(-1, 1, 1, 1)).flatten().long(), levels)
    x = torch.tensor([-9.0, -1.0, 0.0, 0.0117, 1.0, 1.3]).view(-1, 1, 1, 1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 129, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_image_that_is_not_finite_is_refused_by_its_index(bad):
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 1, 1] = bad
    with pytest.raises(ValueError, match="image 1 of the batch is not finite"):
        to_uint8(x)


def test_generated_names_the_sampler_whose_images_are_not_finite():
    class Broken(Blur):
        def sample(self, noise, labels=None):
            return noise.draw() * torch.nan

    with pytest.raises(UserError, match=r"teacher@two:2: seed 4, images 0 to 1: image 0 .* not finite"):
        Generated(Broken(), 4, 2, 8).images(0, 2)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_generated_images_do_not_depend_on_batch_size_or_range(num_classes):
    whole = Generated(Blur(num_classes), 0, 10, 10).images(0, 10)
    small = Generated(Blur(num_classes), 0, 10, 3)
    assert whole.dtype == torch.uint8
    assert whole.shape == (10, *SHAPE)
    assert torch.equal(whole, small.images(0, 99))
    assert torch.equal(whole[4:9], small.images(4, 9))


def test_label_of_image_i_is_i_modulo_classes():
    labels = labels_for(Blur(3), 2, 7)
    assert labels is not None
    assert labels.tolist() == [2, 0, 1, 2, 0]
    assert labels_for(Blur(), 2, 7) is None


def test_tensor_images_are_uint8_only():
    source = TensorImages(torch.arange(48, dtype=torch.uint8).view(3, 1, 4, 4))
    assert len(source) == 3
    assert source.images(1, 2).flatten()[0] == 16
    with pytest.raises(ValueError, match="uint8"):
        TensorImages(torch.zeros(3, 1, 4, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_puts_images_row_by_row_at_native_pixels(channels):
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, channels, 2, 3) * 10
    picture = grid(images, columns=3)
    assert picture.size == (9, 4)
    levels = [picture.getpixel((x, y)) for y in (0, 2) for x in (0, 3, 6)]
    expected = [0, 10, 20, 30, 40, 255]
    assert levels == (expected if channels == 1 else [(v, v, v) for v in expected])
    assert grid(images, columns=3, padding=2).size == (13, 6)
