"""torchmetrics' FID beside ours: the same with its resize for comparison switched off, a little apart with it."""

import pytest
import torch
from torch.nn.functional import avg_pool2d
from torchmetrics.image.fid import FrechetInceptionDistance

from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.features.inception import read_weights
from fewstep.eval.images import TensorImages
from fewstep.eval.quality.metrics import frechet_distance, statistics
from fewstep.eval.quality.references import extract
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.load import load_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
WEIGHTS = "inception/weights-inception-2015-12-05-pool3.safetensors"
COUNT = 150


@pytest.fixture(scope="module")
def sets(real_data):
    """Real test images of CIFAR-10, other ones, and the others blurred: what is measured against the first."""
    images = load_data(DataConfig(source=f"parquet:{real_data('cifar10')}"), "test").images[: 2 * COUNT]
    blurred = avg_pool2d(images[COUNT:].float(), 3, 1, 1, count_include_pad=False).round().to(torch.uint8)
    return {"real": images[:COUNT], "other": images[COUNT:], "blurred": blurred}


@pytest.fixture(scope="module")
def ours(sets, real_data):
    extractor = load_extractor("inception", real_data(WEIGHTS), "cpu")
    found = {name: statistics(extract(extractor, TensorImages(images), name)) for name, images in sets.items()}
    return {name: frechet_distance(found[name], found["real"]) for name in ("other", "blurred")}


@pytest.mark.parametrize(("antialias", "within"), [(False, 1e-3), (True, 0.1)])
def test_fid_differs_by_the_resize_alone(sets, ours, real_data, tmp_path, antialias, within):
    path = tmp_path / "inception.pth"
    torch.save(read_weights(real_data(WEIGHTS)), path)
    metric = FrechetInceptionDistance(
        2048, reset_real_features=False, feature_extractor_weights_path=str(path), antialias=antialias
    )
    for part in sets["real"].split(50):
        metric.update(part, real=True)
    for name in ("other", "blurred"):
        metric.reset()
        for part in sets[name].split(50):
            metric.update(part, real=False)
        theirs = metric.compute().item()
        print(f"antialias {antialias}, {name}: ours {ours[name]:.3f}, torchmetrics {theirs:.3f}")
        assert theirs == pytest.approx(ours[name], rel=within)
