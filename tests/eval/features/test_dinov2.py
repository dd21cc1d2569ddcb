"""DINOv2: the features of the published network, restated here without timm, from weights under its names."""

import json
import sys
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from fewstep.errors import UserError
from fewstep.eval.features import dinov2
from fewstep.eval.features.extractors import check_extractor, load_extractor
from fewstep.eval.features.table import EXTRACTORS
from fewstep.pipeline.cli.main import main

SMALL = {"patch_size": 14, "embed_dim": 32, "depth": 3, "num_heads": 4}


def published_shapes(dim, depth):
    """Names and shapes of the tensors in dinov2_vitl14_pretrain.pth, at any width and depth."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 37 * 37 + 1, dim), "mask_token": (1, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, 14, 14), "patch_embed.proj.bias": (dim,)}
    for block in (f"blocks.{index}." for index in range(depth)):
        for part, rows, columns in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", 4 * dim, dim),
            ("mlp.fc2", dim, 4 * dim),
        ):
            shapes |= {f"{block}{part}.weight": (rows, columns), f"{block}{part}.bias": (rows,)}
        shapes |= dict.fromkeys((f"{block}norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")), (dim,))
        shapes |= {f"{block}ls{i}.gamma": (dim,) for i in (1, 2)}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def random_tensors(dim, depth):
    """Values for the published names, of a size that lets each tensor show in the features."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in published_shapes(dim, depth).items()}
    for tensor in tensors.values():
        if tensor.dim() in (2, 4):  # linear or patch embedding: outputs about as large as inputs
            tensor /= (tensor.numel() / len(tensor)) ** 0.5
    return tensors


def blotches(count, size):
    """uint8 [count, 3, *size] of a few coloured areas: in noise, all patches would look alike to the class token."""
    small = torch.randint(0, 256, (count, 3, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return functional.interpolate(small, size=size, mode="nearest")


class PublishedNetwork(torch.nn.Module):
    """The forward pass of facebookresearch/dinov2 on images [N, 3, 224, 224], from its tensors."""

    def __init__(self, tensors, depth, heads):
        super().__init__()
        self.tensors, self.depth, self.heads = tensors, depth, heads

    def forward(self, images):
        w = self.tensors
        x = functional.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
        x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        grid = w["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        scale = float(224 // 14 + 0.1) / 37
        grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
        x = x + torch.cat([w["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, -1)], dim=1)
        for index in range(self.depth):
            x = self.block(x, f"blocks.{index}.")
        return self.norm(x, "norm")[:, 0]

    def block(self, x, name):
        w = self.tensors
        q, k, v = self.linear(self.norm(x, f"{name}norm1"), f"{name}attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = x + w[f"{name}ls1.gamma"] * self.linear((weights @ v).transpose(1, 2).flatten(2), f"{name}attn.proj")
        hidden = self.linear(self.norm(x, f"{name}norm2"), f"{name}mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        return x + w[f"{name}ls2.gamma"] * self.linear(hidden, f"{name}mlp.fc2")

    def norm(self, x, name):
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]


@pytest.fixture
def small(monkeypatch):
    """Tensors of the published form for a network of 3 blocks of width 32, which the extractor then expects."""
    monkeypatch.setattr(dinov2, "ARCHITECTURE", SMALL)
    monkeypatch.setitem(EXTRACTORS, "dinov2", replace(EXTRACTORS["dinov2"], dim=SMALL["embed_dim"]))
    return random_tensors(32, 3)


def test_the_tensors_expected_are_those_of_the_published_file():
    network = dinov2._vision_transformer(dinov2.PUBLISHED_SIDE)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert expected == {name: shape for name, shape in published_shapes(1024, 24).items() if name != "mask_token"}


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (300, 260)])
def test_features_are_those_of_torch_fidelity_around_the_published_network(small, tmp_path, monkeypatch, size):
    torch.save(small, tmp_path / "weights.pth")
    images = blotches(9, size)
    monkeypatch.setenv("XFORMERS_DISABLED", "1")
    monkeypatch.setattr("torch.hub.load", lambda *given: PublishedNetwork(small, 3, 4))
    with torch.inference_mode():
        (expected,) = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])(images)
    extractor = load_extractor("dinov2", tmp_path / "weights.pth", "cpu")
    features = extractor(images)
    assert features.shape == (9, extractor.dim) == (9, 32)
    assert features.dtype == torch.float32
    assert expected.std(dim=0).mean() > 0.05  # the images show in the features
    assert torch.allclose(features, expected, atol=1e-4)


def test_the_0_1_in_the_scale_of_the_positions_matters(small):
    positions = small["pos_embed"]
    resized = dinov2.resized_positions(positions, 16)
    grid = positions[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    plain = functional.interpolate(grid, size=(16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    assert resized.shape == (1, 257, 32)
    assert torch.equal(resized[:, 0], positions[:, 0])
    assert (resized[:, 1:] - plain).abs().max() > 0.1


def test_grey_images_are_repeated_and_shape_does_not_matter(small, tmp_path):
    save_file(small, tmp_path / "weights.safetensors")
    check_extractor("dinov2", tmp_path / "weights.safetensors", (1, 28, 28))
    extractor = load_extractor("dinov2", tmp_path / "weights.safetensors", "cpu")
    grey = blotches(3, (28, 28))[:, :1]
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_what_the_features_depend_on_is_hashed_and_nothing_else(small, tmp_path):
    def sha256(name, tensors):
        path = tmp_path / name
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
        return load_extractor("dinov2", path, "cpu").sha256

    first = sha256("published.pth", small)
    assert sha256("published.safetensors", small) == first
    assert sha256("no_mask.safetensors", {name: small[name] for name in small if name != "mask_token"}) == first
    assert sha256("other.safetensors", small | {"cls_token": small["cls_token"] + 1}) != first


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"pos_embed": torch.zeros(1, 257, 32)}, "pos_embed"),
        ({"register_tokens": torch.zeros(1, 4, 32)}, "register_tokens"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_first_name(small, tmp_path, change, first):
    save_file(small | change, tmp_path / "other.safetensors")
    with pytest.raises(UserError) as error:
        check_extractor("dinov2", tmp_path / "other.safetensors", (3, 32, 32))
    assert str(error.value).startswith(f"eval.weights: '{tmp_path / 'other.safetensors'}': is not DINOv2's ViT")
    assert str(error.value).endswith(f"1 tensors are missing, unknown or of another shape, the first is '{first}'")


def test_a_missing_file_and_a_failed_download_name_the_key_and_the_remedy(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"^eval\.weights: '.*none\.pth': no such file; give DINOv2 weights"):
        check_extractor("dinov2", tmp_path / "none.pth", (3, 32, 32))
    with pytest.raises(UserError) as error:
        check_extractor("dinov2", None, (3, 32, 32))
    assert "\n" not in str(error.value)
    for part in (
        "dinov2_vitl14_pretrain.pth",
        str(tmp_path / "checkpoints"),
        "no route",
        "pass --eval.weights PATH",
    ):
        assert part in str(error.value)


def test_a_download_of_another_file_is_refused_by_its_hash(tmp_path, monkeypatch):
    (tmp_path / "other.pth").write_bytes(b"something else")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    elsewhere = replace(dinov2.WEIGHTS, url=(tmp_path / "other.pth").as_uri())
    monkeypatch.setattr(dinov2, "WEIGHTS", elsewhere)
    with pytest.raises(UserError, match=r"^eval\.weights: .* could not be fetched from file:.*invalid hash"):
        check_extractor("dinov2", None, (3, 32, 32))
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_reference_and_benchmark_from_the_command_line(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    save_file(small, tmp_path / "weights.safetensors")
    real, other = blotches(80, (8, 8)).permute(0, 2, 3, 1).numpy().reshape(2, 40, 8, 8, 3)
    (tmp_path / "real").mkdir()
    for index, image in enumerate(real):
        Image.fromarray(image).save(tmp_path / "real" / f"{index:03d}.png")
    np.savez(tmp_path / "other.npz", other // 4)
    weights = ["--eval.weights", str(tmp_path / "weights.safetensors")]
    file, out = str(tmp_path / "ref.safetensors"), tmp_path / "table"
    source = f"imagefolder:{tmp_path / 'real'}"
    assert main(["reference", source, "-o", file, "--eval.extractor", "dinov2", *weights]) == 0
    subjects = [str(tmp_path / "real"), str(tmp_path / "other.npz")]
    small_counts = ["--eval.images", "40", "--eval.kid_subset_size", "20"]
    assert main(["benchmark", *subjects, "--eval.reference", file, "-o", str(out), *weights, *small_counts]) == 0
    value = json.loads((out / "results.json").read_text())
    assert value["benchmark"]["metric_name"] == "FD-DINOv2"
    assert value["benchmark"]["protocol"]["extractor"]["name"] == "dinov2"  # as the reference says
    same, different = (sampler["quality"]["metrics"]["fd"]["mean"] for sampler in value["samplers"])
    assert same == pytest.approx(0, abs=1e-3)
    assert different > 0.1
    assert "FD-DINOv2" in (out / "results.md").read_text()


def test_without_timm_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as error:
        check_extractor("dinov2", tmp_path / "none.pth", (3, 32, 32))
    assert str(error.value) == "eval.extractor: 'dinov2': needs timm: pip install 'fewstep[dinov2]'"
