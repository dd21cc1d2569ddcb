"""Extractors: the shipped digits-cnn, Inception's weights from a user's file, what is refused."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.eval.features import digits_cnn, inception
from fewstep.eval.features.digits_cnn import DigitsCNN, digits
from fewstep.eval.features.extractors import check_extractor, load_extractor, sha256_tensors

WEIGHTS = "inception/weights-inception-2015-12-05-pool3.safetensors"


@pytest.fixture(scope="module")
def weights(real_data):
    return real_data(WEIGHTS)


def test_digits_cnn_reads_the_digits():
    network = DigitsCNN()
    network.load_state_dict(load_file(digits_cnn.WEIGHTS))
    images, labels = digits()
    with torch.inference_mode():
        found = network.logits(network(images)).argmax(1)
    assert (found == labels).float().mean() > 0.97


def test_digits_cnn_file_says_what_it_is():
    with safe_open(digits_cnn.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["sha256_tensors"] == sha256_tensors(load_file(digits_cnn.WEIGHTS))
    assert metadata["script"] == "fewstep.eval.features.make_digits_cnn"
    assert float(metadata["accuracy_held_out"]) > 0.97
    assert "torch" in metadata["versions"]


def test_digits_cnn_features_do_not_depend_on_the_batch():
    extractor, images = load_extractor("digits-cnn", None, "cpu"), digits()[0][:40]
    whole = extractor(images)
    assert whole.shape == (40, extractor.dim)
    assert whole.dtype == torch.float32
    assert torch.allclose(whole, torch.cat([extractor(part) for part in images.split(7)]), rtol=1e-4, atol=1e-4)


def test_digits_cnn_weights_that_were_changed_are_named(tmp_path, monkeypatch):
    tensors = load_file(digits_cnn.WEIGHTS)
    with safe_open(digits_cnn.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    tensors["embed.bias"][3] += 1e-3
    save_file(tensors, tmp_path / "digits-cnn.safetensors", metadata)
    monkeypatch.setattr(digits_cnn, "WEIGHTS", tmp_path / "digits-cnn.safetensors")
    with pytest.raises(UserError, match=r"digits-cnn\.safetensors: is damaged"):
        load_extractor("digits-cnn", None, "cpu")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28)])
def test_digits_cnn_takes_the_digits_only(shape):
    with pytest.raises(UserError, match=r"eval\.extractor: 'digits-cnn': judges images of 1x8x8 .*; use small-cnn"):
        check_extractor("digits-cnn", None, shape)
    with pytest.raises(UserError, match="judges images of 1x8x8"):
        load_extractor("digits-cnn", None, "cpu")(torch.zeros(2, *shape, dtype=torch.uint8))


def test_missing_weights_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"eval\.weights: '.*none\.pth': no such file"):
        check_extractor("inception", tmp_path / "none.pth", (3, 32, 32))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "list", "pickle"])
def test_unreadable_weights_are_refused_and_run_nothing(tmp_path, suffix, kind):
    path, mark = tmp_path / f"weights{suffix}", tmp_path / "ran"
    torch.save({"a": torch.zeros(100)}, tmp_path / "whole.pth")
    content = {
        "empty": b"",
        "text": b"not weights\n",
        "truncated": (tmp_path / "whole.pth").read_bytes()[:600],
        "list": b"\x80\x02](K\x01K\x02e.",  # a pickle of [1, 2]
        "pickle": f"\x80\x02cos\nmkdir\n(S'{mark}'\ntR.".encode("latin-1"),  # loading it calls os.mkdir
    }[kind]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"eval\.weights: "):
        check_extractor("inception", path, (3, 32, 32))
    assert not mark.exists()


def test_weights_of_another_network_are_refused_by_the_first_name(tmp_path):
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"566 tensors .* the first is 'Conv2d_1a_3x3\.conv\.weight'"):
        check_extractor("inception", tmp_path / "other.safetensors", (1, 28, 28))


def test_a_failed_download_says_which_file_where_and_how(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError) as error:
        check_extractor("inception", None, (3, 32, 32))
    for part in (
        "eval.weights",
        "weights-inception-2015-12-05-6726825d.pth",
        str(tmp_path),
        "PATH",
    ):
        assert part in str(error.value)
    assert str(error.value).endswith("--eval.extractor small-cnn")


def test_a_cached_download_is_used_without_the_net(tmp_path, monkeypatch):
    name = inception.URL_INCEPTION_V3.rsplit("/", 1)[1]
    (tmp_path / "checkpoints").mkdir()
    save_file({"bias": torch.ones(1)}, tmp_path / "checkpoints" / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=f"^eval.weights: '{tmp_path / 'checkpoints' / name}': cannot be read"):
        inception.read_weights(None)


def test_a_weights_file_in_the_home_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"^eval.weights: '{tmp_path / 'weights.pth'}': cannot be read"):
        inception.read_weights(Path("~/weights.pth"))


def test_inception_features_are_torch_fidelitys(weights, tmp_path):
    images = torch.randint(0, 256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    extractor = load_extractor("inception", weights, "cpu")
    features = extractor(images)
    torch.save(load_file(weights), tmp_path / "weights.pth")
    network = inception.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    with torch.inference_mode():
        expected = network(images.expand(-1, 3, -1, -1))[0]
    assert (features - expected).norm() / expected.norm() < 1e-4
    assert (extractor.dim, extractor.channels) == (2048, 3)


def test_one_network_in_two_file_formats_has_one_hash(weights, real_data):
    pickled = real_data(str(Path(WEIGHTS).with_suffix(".pth")))
    both = [load_extractor("inception", path, "cpu") for path in (weights, pickled)]
    assert both[0].sha256 == both[1].sha256
