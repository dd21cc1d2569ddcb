"""A planted defect is caught: each test names the metric or the check that shows it, on real images."""

import dataclasses

import pytest
import torch

from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.images import TensorImages, full_range_share, pixels_sha256
from fewstep.eval.quality.copies import TrainingFeatures, TrainingImages
from fewstep.eval.quality.floor import floor
from fewstep.eval.quality.metrics import frechet_distance, kernel_distance, precision_recall, statistics
from fewstep.eval.quality.protocol import Protocol, check_same
from fewstep.eval.quality.references import extract, load_halves
from fewstep.eval.report.notes import _about_range
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.load import load_data

HALF = 898
INCEPTION = "inception/weights-inception-2015-12-05-pool3.safetensors"


@pytest.fixture(scope="module")
def halves():
    """Two disjoint random halves of the real digits: what is measured, and the reference."""
    images = digits()[0]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    return images[order[:HALF]], images[order[HALF : 2 * HALF]]


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits-cnn", None, "cpu")


@pytest.fixture(scope="module")
def measured(halves, extractor, tmp_path_factory):
    """measured(images): {"fd", "kid", "precision", "recall"} against the reference half; and the floor."""
    reference = extractor(halves[1])

    def measure(images):
        features = extractor(images)
        precision, recall = precision_recall(features, reference)
        return {
            "fd": frechet_distance(statistics(features), statistics(reference)),
            "kid": kernel_distance(features, reference, 400),
            "precision": precision,
            "recall": recall,
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        level = floor(load_halves(reference, 400), HALF, HALF)["fd"]
    return measure, level


def test_real_images_stand_at_the_floor(halves, measured):
    measure, level = measured
    assert measure(halves[0])["fd"] == pytest.approx(level, rel=0.5)  # 2.4 at a floor of 1.9


def test_a_shifted_crop_raises_fd_and_kid(halves, measured):
    measure, level = measured
    right, shifted = measure(halves[0]), measure(halves[0].roll(1, dims=-1))
    assert shifted["fd"] > 3 * level
    assert shifted["kid"] > 5 * abs(right["kid"])


def test_duplicated_images_lower_recall_and_raise_fd(halves, measured):
    measure, level = measured
    right, few = measure(halves[0]), measure(halves[0][:40].repeat(23, 1, 1, 1)[:HALF])
    assert few["fd"] > 3 * level
    assert few["recall"] < 0.7 * right["recall"]
    assert few["precision"] == pytest.approx(right["precision"], abs=0.15)  # each image is real: precision is blind


def test_a_copied_training_set_is_seen_by_the_near_copies_alone(halves, measured):
    measure, level = measured
    training = TrainingImages(halves[0], mirrored=False)
    noisy = (halves[0].int() + torch.randint(-2, 3, halves[0].shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 255
    )
    copied = noisy.to(torch.uint8)
    assert measure(copied)["fd"] < 1.5 * level  # by distance it is as good as real images
    assert training.nearest(copied).share(training.threshold) == 1.0
    assert training.nearest(halves[1]).share(training.threshold) < 0.05


def test_another_reference_split_is_another_protocol(halves, extractor):
    def protocol(images, split):
        reference = {"dataset": "digits", "split": split, "count": len(images), "sha256": pixels_sha256(images)}
        return Protocol(reference=reference, extractor=extractor.to_json(), images=100, encoding="uint8")

    with pytest.raises(UserError, match=r"protocol\.reference\.split"):
        check_same(protocol(halves[0], "train"), protocol(halves[1], "test"))
    mislabelled = protocol(halves[1], "train")
    with pytest.raises(UserError, match=r"protocol\.reference\.sha256"):
        check_same(protocol(halves[0], "train"), mislabelled)
    forged = mislabelled.to_json() | {"reference": protocol(halves[0], "train").reference}
    with pytest.raises(UserError, match=r"protocol\.hash"):
        Protocol.from_json(forged)
    assert dataclasses.replace(mislabelled).hash == mislabelled.hash


def test_scaling_by_minimum_and_maximum_is_seen_by_the_range_check(real_data):
    real = load_data(DataConfig(source=f"parquet:{real_data('cifar10')}"), "test").images
    x = real[:1000].float()
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    scaled = ((x - low) / (high - low) * 255).round().to(torch.uint8)

    def notes(images):
        """What a report would say; FID, KID, precision and recall of these photographs hardly move (46.6 to 46.7)."""
        metric = {"full_range": {"mean": full_range_share(images)}}
        sampler = {"label": "a model", "quality": {"metrics": metric}}
        results = {"benchmark": {"reference": {"full_range": full_range_share(real)}}, "samplers": [sampler]}
        return _about_range(results)

    assert notes(real[:1000]) == []
    assert notes(scaled) == [
        "100.0 % of the images of a model reach from 0 to 255, of the real ones 10.0 %: they look scaled by their own "
        "minimum and maximum."
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_swapped_colours_are_seen_by_fid_and_kid(real_data):
    images = load_data(DataConfig(source=f"parquet:{real_data('cifar10')}"), "test").images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    right, other = images[order[:300]], images[order[300:600]]
    extractor = load_extractor("inception", real_data(INCEPTION), "cpu")
    features = [extract(extractor, TensorImages(part), "features") for part in (right, right.flip(1), other)]
    fd = [frechet_distance(statistics(part), statistics(features[2])) for part in features[:2]]
    kid = [kernel_distance(part, features[2], 150) for part in features[:2]]
    print(f"BGR: FID {fd[0]:.1f} to {fd[1]:.1f}, KID {kid[0]:.5f} to {kid[1]:.5f}")
    assert fd[1] > 1.15 * fd[0]
    assert kid[1] > kid[0] + 0.005


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("change", ["brighter", "mirrored"])
def test_changed_copies_are_seen_in_features_and_not_in_pixels(real_data, cifar_training, change):
    images, extractor, in_pixels, in_features = cifar_training
    copies = images[:100].flip(-1) if change == "mirrored" else (images[:100].int() + 40).clamp(0, 255).to(torch.uint8)
    features = extract(extractor, TensorImages(copies), "features")
    shares = [
        in_pixels.nearest(copies).share(in_pixels.threshold),
        in_features.nearest(features).share(in_features.threshold),
    ]
    print(f"{change} copies: {shares[0]:.2f} found in pixels, {shares[1]:.2f} in features")
    assert shares[0] < 0.15
    assert shares[1] > 0.6


@pytest.fixture(scope="module")
def cifar_training(real_data):
    """500 training images, the extractor, and both searches for their copies."""
    images = load_data(DataConfig(source=f"parquet:{real_data('cifar10')}"), "train").images[:500]
    extractor = load_extractor("inception", real_data(INCEPTION), "cpu")
    features = extract(extractor, TensorImages(images), "features")
    return images, extractor, TrainingImages(images, mirrored=False), TrainingFeatures(features)
