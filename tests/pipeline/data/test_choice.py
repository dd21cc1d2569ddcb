"""Images that choices are made on are none that quality is measured against."""

import pytest
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.eval.images import indexed
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.choice import choice_images, reference_images
from fewstep.pipeline.data.load import load_data

DIGITS = DataConfig(source="digits")


def numbered(count):
    """Images that are all different: their pixels are their numbers."""
    return torch.stack([torch.arange(count) // 256, torch.arange(count) % 256], 1).to(torch.uint8).view(-1, 1, 1, 2)


def numbers(images):
    return [int(high) * 256 + int(low) for high, low in images.flatten(1)]


def test_a_fifth_of_the_training_images_is_left_out_of_the_reference():
    training = load_data(DIGITS, "train").images
    choice, (reference, name) = choice_images(DIGITS, training), reference_images(DIGITS, training)
    assert (len(choice), len(reference)) == (359, 1438)
    assert name == "train, without the 359 images that choices are made on"


@pytest.mark.parametrize(("count", "least"), [(20, 4), (1000, 200), (20_000, 2000)])
def test_the_parts_are_disjoint_and_make_up_the_whole(count, least):
    training = numbered(count)
    choice, reference = numbers(choice_images(DIGITS, training)), numbers(reference_images(DIGITS, training)[0])
    assert len(choice) == least
    assert sorted(choice + reference) == list(range(count))
    assert reference == sorted(reference)
    assert choice != list(range(least))  # of all kinds, in whatever order the source has them


def test_they_do_not_depend_on_anything_random():
    training = numbered(100)
    torch.manual_seed(5)
    one = choice_images(DIGITS, training)
    torch.manual_seed(6)
    assert torch.equal(choice_images(DIGITS, training), one)


def folders(tmp_path, **counts):
    for split, count in counts.items():
        (tmp_path / split).mkdir()
        for index in range(count):
            Image.new("L", (8, 8), index + (100 if split == "test" else 0)).save(tmp_path / split / f"{index:03}.png")
    return f"imagefolder:{tmp_path}"


def test_against_another_split_the_whole_of_it_is_the_reference(tmp_path):
    config = DataConfig(source=folders(tmp_path, train=25, test=6), reference_split="test")
    training = load_data(config, "train").images
    assert len(choice_images(config, training)) == 5
    reference, name = reference_images(config, training)
    assert (len(reference), int(indexed(reference).images(0, 6).min()), name) == (6, 100, "test")


def test_with_a_split_to_choose_on_all_training_images_are_the_reference(tmp_path):
    config = DataConfig(source=folders(tmp_path, train=25, test=6), choice_split="test")
    training = load_data(config, "train").images
    choice = choice_images(config, training)
    assert (len(choice), int(choice.min())) == (6, 100)
    assert reference_images(config, training) == (training, "train")
    assert load_config("cifar10").data.choice_split == "test"


def test_too_few_images_or_no_such_split_are_errors_that_name_the_key(tmp_path):
    config = DataConfig(source=folders(tmp_path, train=19), choice_split=None)
    with pytest.raises(UserError, match=r"data\.choice_split: 3: .*too few.*20 to train on"):
        choice_images(config, load_data(config, "train").images)
    config = DataConfig(source=config.source, choice_split="validation")
    with pytest.raises(UserError, match=r"data\.choice_split: 'validation': .* has no such split, but train"):
        choice_images(config, numbered(20))
