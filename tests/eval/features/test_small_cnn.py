"""small-cnn: images of any small shape, the same features in any batch, defects seen, the shipped file."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fewstep.eval.features import small_cnn
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import check_extractor, load_extractor, sha256_tensors
from fewstep.eval.features.make_small_cnn import BATCH, folded, read_parquet
from fewstep.eval.features.small_cnn import SmallCNN, prepared
from fewstep.eval.quality.defects import CHANGES
from fewstep.eval.quality.metrics import frechet_distance, statistics
from fewstep.eval.quality.references import load_halves

SHAPES = [(1, 8, 8), (3, 28, 28), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 40, 24)]


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("small-cnn", None, "cpu")


def images_of(count, shape):
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_do_not_depend_on_the_batch(extractor, shape):
    check_extractor("small-cnn", None, shape)
    images = images_of(100, shape)
    whole = extractor(images)
    assert whole.shape == (100, extractor.dim)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, extractor(images))
    alone = torch.cat([extractor(image) for image in images.split(1)])
    assert (whole - alone).norm(dim=1).max() < 1e-6 * whole.norm(dim=1).max()


def test_grey_is_repeated(extractor):
    grey = images_of(4, (1, 28, 28))
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_images_of_32_pixels_are_not_resized_and_larger_ones_are_averaged():
    images = images_of(2, (3, 32, 32))
    assert torch.equal(prepared(images), images.float() / 127.5 - 1)
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 64, 32).unsqueeze(0)  # a pixel each: grey when halved
    assert prepared(stripes)[..., 4:-4].abs().max() < 0.01


def test_the_file_says_what_it_is():
    with safe_open(small_cnn.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["sha256_tensors"] == sha256_tensors(load_file(small_cnn.WEIGHTS))
    assert metadata["script"] == "fewstep.eval.features.make_small_cnn"
    least = {"CIFAR-10": 0.6, "Fashion-MNIST": 0.85, "MNIST": 0.97}
    assert all(float(metadata[f"accuracy_{name}"]) > least[name] for name in BATCH)
    assert "torch" in metadata["versions"]
    assert small_cnn.WEIGHTS.stat().st_size < 1e6


def test_weights_without_batch_norms_give_the_features_of_the_training():
    trained, plain = SmallCNN(normalise=True), SmallCNN()
    images = prepared(images_of(64, (3, 32, 32)))
    with torch.inference_mode():
        trained(images)  # moves the means and variances
        plain.load_state_dict(folded(trained.eval()))
        a, b = trained(images), plain(images)
    assert (a - b).norm() < 5e-3 * a.norm()  # float16


@pytest.fixture(scope="module")
def seen(extractor, tmp_path_factory):
    """seen(images): names of the defects whose distance from other real images is not 2 floors or more."""

    def blind(images):
        first, second = images.split(len(images) // 2)
        reference = extractor(second)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
            floor = load_halves(extractor(images), 100)["fd"]
        changed = {
            f"{defect}, {name}": change(first, torch.Generator().manual_seed(0))
            for defect, strengths in CHANGES.items()
            for name, change in strengths[-1:]
            if defect != "colour" or images.shape[1] == 3
        }
        changed["40 images repeated"] = first[:40].repeat(len(first) // 40, 1, 1, 1)
        found = {name: statistics(extractor(each)) for name, each in changed.items()}
        ratios = {name: frechet_distance(each, statistics(reference)) / floor for name, each in found.items()}
        return {name: ratio for name, ratio in ratios.items() if ratio < 2}

    return blind


def test_defects_of_the_digits_are_seen(seen):
    images = digits()[0][:800]
    assert seen(images[torch.randperm(800, generator=torch.Generator().manual_seed(0))]) == {}


@pytest.mark.parametrize(("folder", "unseen"), [("cifar10", set()), ("fashion_mnist", {"jpeg, quality 8"})])
def test_defects_of_real_images_are_seen_but_for_those_that_the_documents_name(seen, real_data, folder, unseen):
    assert set(seen(read_parquet(real_data(folder), "test", 800)[0])) == unseen
