"""References from files: what each form gives, and that a wrong file is one line that names it."""

import numpy as np
import pytest
import torch

from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.quality.metrics import frechet_distance, statistics
from fewstep.eval.quality.reference_files import read_reference, reference_extractor
from fewstep.eval.quality.references import write_features

FACTS = {"dataset": "digits", "split": "train", "count": 300, "sha256": "0" * 64}


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits-cnn", None, "cpu")


@pytest.fixture(scope="module")
def features(extractor):
    return extractor(digits()[0][:300])


@pytest.fixture
def moments(features):
    return {"mu": features.numpy().mean(0), "sigma": np.cov(features.numpy(), rowvar=False)}


def test_ours_gives_back_features_and_provenance(tmp_path, extractor, features):
    write_features(tmp_path / "ref.safetensors", features, FACTS, extractor)
    found = read_reference(tmp_path / "ref.safetensors", extractor)
    assert found.features is not None
    assert torch.equal(found.features, features)
    assert found.provenance == FACTS
    assert frechet_distance(found.statistics, statistics(features)) == pytest.approx(0, abs=1e-6)
    assert reference_extractor(tmp_path / "ref.safetensors") == "digits-cnn"


def test_a_published_npz_gives_the_same_distance(tmp_path, extractor, features, moments):
    np.savez(tmp_path / "stats.npz", **moments)
    found = read_reference(tmp_path / "stats.npz", extractor)
    assert found.features is None
    assert found.provenance["dataset"] == "stats.npz"
    other = statistics(features[:150])
    assert frechet_distance(found.statistics, other) == pytest.approx(
        frechet_distance(statistics(features), other), rel=1e-4
    )


def test_both_files_of_torch_fidelity_s_cache_are_read(tmp_path, extractor, features, moments):
    torch.save(moments, tmp_path / "x-stat-fid-64.pt")
    torch.save(features, tmp_path / "x-features-64.pt")
    found = read_reference(tmp_path / "x-stat-fid-64.pt", extractor)
    assert found.features is None
    np.testing.assert_allclose(found.statistics.covariance, moments["sigma"])
    whole = read_reference(tmp_path / "x-features-64.pt", extractor)
    assert whole.features is not None
    assert whole.provenance["count"] == 300
    np.testing.assert_allclose(whole.statistics.mean, moments["mu"], rtol=1e-4, atol=1e-6)


class Shell:
    """Runs a command when it is unpickled by a reader that allows it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def broken(tmp_path, moments, features, form):
    dim = len(moments["mu"])
    nan = moments["mu"].copy()
    nan[3] = np.nan
    crooked = moments["sigma"].copy()
    crooked[0, 1] += 1
    path = tmp_path / f"{form}{'.pt' if form.startswith('pt') else '.npz'}"
    values = {
        "npz_other_size": {"mu": np.zeros(dim - 1), "sigma": np.eye(dim - 1)},
        "npz_large": {"mu": np.zeros(2 * dim), "sigma": np.eye(2 * dim)},
        "npz_no_sigma": {"mu": moments["mu"]},
        "npz_nan": {**moments, "mu": nan},
        "npz_crooked": {**moments, "sigma": crooked},
        "npz_object": {"mu": np.array([{}], dtype=object), "sigma": moments["sigma"]},
        "pt_other": {"weights": torch.zeros(3)},
        "pt_few_features": features[:3],
        "pt_nan_features": torch.full((10, dim), float("nan")),
        "pt_code": Shell(tmp_path / "ran"),
    }
    if form in ("npz_text", "pt_text"):
        path.write_text("not a zip")
    elif form.startswith("pt"):
        torch.save(values[form], path)
    else:
        np.savez(path, **values[form])
    return path


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("npz_other_size", "gives 64 features: made with another extractor"),
        ("npz_large", "larger than 64 features need: made with another extractor"),
        ("npz_no_sigma", "holds no sigma"),
        ("npz_nan", "its mu is not made of finite numbers"),
        ("npz_crooked", "its sigma is not symmetric"),
        ("npz_object", "cannot be read as an .npz of arrays"),
        ("npz_text", "cannot be read as an .npz of arrays"),
        ("pt_text", "cannot be read as a cache of torch-fidelity"),
        ("pt_other", "holds neither features nor mu and sigma"),
        ("pt_few_features", r"holds features \(3, 64\); needed are 4 or more rows of 64"),
        ("pt_nan_features", "its features are not finite"),
        ("pt_code", "cannot be read as a cache of torch-fidelity"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, extractor, features, moments, form, says):
    path = broken(tmp_path, moments, features, form)
    with pytest.raises(UserError, match=rf"eval\.reference: '.*{path.name}': .*{says}"):
        read_reference(path, extractor)
    assert not (tmp_path / "ran").exists()


def test_a_reference_of_another_extractor_is_refused(tmp_path, extractor, features):
    import dataclasses

    write_features(tmp_path / "ref.safetensors", features, FACTS, dataclasses.replace(extractor, sha256="1" * 64))
    with pytest.raises(UserError, match=r"made with another extractor \(sha256"):
        read_reference(tmp_path / "ref.safetensors", extractor)


@pytest.mark.parametrize("position", [20, -50])
def test_a_flipped_byte_of_ours_is_found(tmp_path, extractor, features, position):
    path = tmp_path / "ref.safetensors"
    write_features(path, features, FACTS, extractor)
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"ref\.safetensors"):
        read_reference(path, extractor)


def test_a_missing_file_and_an_unknown_name_say_what_is_read(tmp_path, extractor):
    with pytest.raises(UserError, match=r"no such file; give a \.safetensors of fewstep reference"):
        read_reference(tmp_path / "none.npz", extractor)
    (tmp_path / "a.csv").touch()
    with pytest.raises(UserError, match="not known by its name"):
        read_reference(tmp_path / "a.csv", extractor)
