"""Inception as torch-fidelity runs it: the same metrics on the same images, and faster on a processor."""

import time

import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.features.inception import read_weights
from fewstep.eval.images import TensorImages
from fewstep.eval.quality.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    statistics,
)
from fewstep.eval.quality.references import extract
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.load import load_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
WEIGHTS = "inception/weights-inception-2015-12-05-pool3.safetensors"
FASTER = 1.3
BATCH = 64  # torch-fidelity's default


class Images(torch.utils.data.Dataset):
    """uint8 [C, H, W] one by one, as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def halves(real_data):
    """Two disjoint parts of 400 test images of CIFAR-10."""
    images = load_data(DataConfig(source=f"parquet:{real_data('cifar10')}"), "test").images
    return images[:400], images[400:800]


@pytest.fixture(scope="module")
def weights(real_data, tmp_path_factory):
    """The weights as the .pth that torch-fidelity opens, with random logits: the file in use has none."""
    path, tensors = tmp_path_factory.mktemp("weights") / "inception.pth", read_weights(real_data(WEIGHTS))
    tensors["fc.weight"] = 0.1 * torch.randn(tensors["fc.weight"].shape, generator=torch.Generator().manual_seed(0))
    torch.save(tensors, path)
    return path


def test_metrics_are_torch_fidelity_s_on_the_same_images(halves, weights, real_data):
    extractor = load_extractor("inception", weights, "cpu")
    assert extractor.sha256 == load_extractor("inception", real_data(WEIGHTS), "cpu").sha256
    ours = [extract(extractor, TensorImages(images), "features") for images in halves]
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(halves[0]),
        input2=Images(halves[1]),
        cuda=False,
        feature_extractor="inception-v3-compat",  # precision and recall would take another one
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=200,
        feature_extractor_weights_path=str(weights),
        save_cpu_ram=True,
        verbose=False,
    )
    a, b = ours
    precision, recall = precision_recall(a, b)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-4
    )
    assert kernel_distance(a, b, 200) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert extractor.logits is not None
    assert inception_score(a, extractor.logits) == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert theirs["inception_score_mean"] > 2
    assert precision == pytest.approx(theirs["precision"], rel=1e-4)
    assert recall == pytest.approx(theirs["recall"], rel=1e-4)
    assert abs(frechet_distance(statistics(a), statistics(a))) < 1e-3


def test_features_come_faster_than_torch_fidelity_s_own(halves, weights, real_data):
    ours = load_extractor("inception", real_data(WEIGHTS), "cpu")
    plain = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    threads = torch.get_num_threads()
    torch.set_num_threads(torch.multiprocessing.cpu_count())
    try:
        images, seconds = halves[0][:BATCH], {"ours": [], "theirs": []}
        with torch.inference_mode():
            for _ in range(4):
                for name, network in (("ours", ours), ("theirs", plain)):
                    start = time.perf_counter()
                    network(images)
                    seconds[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    ratio = min(seconds["theirs"]) / min(seconds["ours"])
    rates = {name: BATCH / min(each) for name, each in seconds.items()}
    print(f"images/s: {rates}, ratio {ratio:.2f}")
    assert ratio >= FASTER
