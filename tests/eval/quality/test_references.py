"""Reference features: cached with provenance, verified when read, made again when damaged."""

import logging

import pytest
import torch
from safetensors import safe_open

from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.images import pixels_sha256
from fewstep.eval.quality import references as reference
from fewstep.eval.quality.references import load_halves, load_reference

PROVENANCE = {"dataset": "digits", "split": "train"}


class Counting:
    """digits-cnn that counts the images it sees."""

    def __init__(self):
        self.inner, self.seen = load_extractor("digits-cnn", None, "cpu"), 0
        self.name, self.sha256, self.resize = self.inner.name, self.inner.sha256, self.inner.resize
        self.dim, self.device, self.to_json = self.inner.dim, self.inner.device, self.inner.to_json

    def __call__(self, images):
        self.seen += len(images)
        return self.inner(images)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "references"))
    return tmp_path / "references"


@pytest.fixture
def images():
    return digits()[0][:200]


def load(images, extractor):
    return load_reference(images, PROVENANCE, extractor)


def features_of(images, extractor):
    features = load_reference(images, PROVENANCE, extractor).features
    assert features is not None
    return features


def test_a_second_load_extracts_nothing_and_gives_the_same(cache, images):
    first, second = Counting(), Counting()
    a, b = load(images, first), load(images, second)
    assert (first.seen, second.seen) == (200, 0)
    assert a.features is not None
    assert b.features is not None
    assert torch.equal(a.features, b.features)
    assert a.provenance == b.provenance == {**PROVENANCE, "count": 200, "sha256": pixels_sha256(images)}


def test_the_cache_file_holds_its_provenance(cache, images):
    load(images, Counting())
    with safe_open(next(cache.glob("*.safetensors")), "pt") as file:
        provenance = file.metadata()["provenance"]
    assert pixels_sha256(images) in provenance
    assert "digits-cnn" in provenance


def test_other_images_do_not_meet_the_cached_file(cache, images):
    load(images, Counting())
    other, extractor = images.clone(), Counting()
    other[7, 0, 3, 3] ^= 1
    load(other, extractor)
    assert extractor.seen == 200
    assert len(list(cache.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_file_is_named_and_made_again(cache, images, caplog, damage):
    features = features_of(images, Counting())
    path = next(cache.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"flip": content, "truncate": content[:500], "empty": b""}[damage])
    extractor = Counting()
    with caplog.at_level(logging.WARNING, "fewstep"):
        again = features_of(images, extractor)
    assert extractor.seen == 200
    assert torch.equal(again, features)
    assert str(path) in caplog.text
    assert features_of(images, extractor).shape == features.shape
    assert extractor.seen == 200


def test_halves_are_computed_once_for_the_same_features(cache, images, monkeypatch):
    features = features_of(images, Counting())
    halves = load_halves(features, 50)
    monkeypatch.setattr(reference, "half_distances", lambda *_: {**halves, "fd": -1.0})
    assert load_halves(features, 50) == halves
    assert load_halves(features.flip(0), 50)["fd"] == -1.0
    assert load_halves(features, 40)["fd"] == -1.0


def test_a_cache_that_cannot_be_written_is_one_line(images, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file" / "references"))
    with pytest.raises(UserError, match="set FEWSTEP_CACHE to another folder"):
        load(images, Counting())


def test_a_reference_of_three_images_is_refused(cache, images):
    with pytest.raises(UserError, match=r"data\.reference_split: 3: .*4 or more"):
        load(images[:3], Counting())
