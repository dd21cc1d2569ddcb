"""The default extractor: inception if its weights can be had, and a line that says so if they cannot."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from fewstep.eval.features import inception, table
from fewstep.eval.features.table import EXTRACTORS, INCEPTION_URL, default_extractor, hub_folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def test_without_a_network_the_default_needs_no_download(offline):
    name, why = default_extractor()
    assert name == "small-cnn"
    assert EXTRACTORS[name].shipped
    for part in ("small-cnn", str(hub_folder() / "checkpoints"), "no route to host", "--eval.weights PATH"):
        assert part in why


def test_the_default_is_inception_if_its_weights_are_given_or_in_the_hub_folder(offline, tmp_path):
    assert default_extractor(Path("w.pth")) == ("inception", "")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / table.INCEPTION).touch()
    assert default_extractor() == ("inception", "")


def test_the_default_is_inception_if_its_weights_can_be_fetched(offline, monkeypatch, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: (tmp_path / "x").open("w"))
    assert default_extractor() == ("inception", "")


@pytest.mark.parametrize("setting", [{}, {"TORCH_HOME": "~/t"}, {"XDG_CACHE_HOME": "/x"}])
def test_the_hub_folder_is_torch_s(monkeypatch, setting):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert hub_folder() == Path(torch.hub.get_dir())


def test_the_weights_looked_for_are_those_that_are_read():
    assert inception.WEIGHTS.url == INCEPTION_URL
