"""DINOv2's ViT-L/14 (Oquab et al. 2023), whose features FD-DINOv2 is taken in.

Stein et al. 2023, "Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion
models": the feature is the normalised class token. The network is timm's, an extra; the weights and the resize of the
positional embedding are those of facebookresearch/dinov2, and images are prepared as torch-fidelity's wrapper does
(the paper's own code resizes them bicubically).
"""

from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import interpolate
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.transforms.functional import normalize

from fewstep.errors import UserError
from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.features.extractors import OpenNetwork
from fewstep.eval.features.weights_file import PublishedWeights

ARCHITECTURE: dict[str, Any] = {"patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16}
SIDE, PUBLISHED_SIDE = 224, 518  # pixels: of the images judged, and of those that the published positions belong to
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet's, of values 0..255
WEIGHTS = PublishedWeights(
    network="DINOv2's ViT-L/14",
    owner="DINOv2",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
)


def read_weights(path: Path | None) -> dict[str, Tensor]:
    """The tensors that the features depend on, names and shapes checked; from the user's file, or the download.

    The token that stands for masked patches in training is left out: features have no masks.
    UserError: timm is not installed; the file is missing, cannot be fetched or read, or is of another network.
    """
    network = _vision_transformer(PUBLISHED_SIDE)
    return WEIGHTS.read(path, network, unused="mask_token")


def open_network(tensors: dict[str, Tensor], device: torch.device) -> OpenNetwork:
    """Its features are the normalised class tokens [N, 1024]."""
    positions = resized_positions(tensors["pos_embed"].float(), SIDE // ARCHITECTURE["patch_size"])
    network = _vision_transformer(SIDE)
    network.load_state_dict({**tensors, "pos_embed": positions}, assign=True)
    network.requires_grad_(False).eval().to(device, torch.float32)
    network.register_forward_pre_hook(stop_if_cancelled)
    return OpenNetwork(features=lambda images: network(_prepared(images)), used=tensors)


def resized_positions(positions: Tensor, side: int) -> Tensor:
    """Positional embedding [1, 1 + M*M, D] -> [1, 1 + side*side, D]; that of the class token stays.

    As `interpolate_pos_encoding` of facebookresearch/dinov2 does it for this network: bicubic, without antialiasing,
    with the scale of a grid 0.1 larger than `side`, which shifts the points where the embedding is read.
    """
    published = isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].unflatten(1, (published, published)).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=(side + 0.1) / published, mode="bicubic")
    assert grid.shape[-2:] == (side, side)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _prepared(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N, 3, 224, 224] with ImageNet's mean and standard deviation taken out."""
    resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(SIDE, SIDE), align_corners=False)
    return normalize(resized, MEAN, STD)


def _vision_transformer(side: int) -> Module:
    """timm's network for images of `side` pixels, without values; UserError where timm is not installed."""
    try:
        from timm import create_model
    except ImportError:
        raise UserError("eval.extractor", "dinov2", "needs timm: pip install 'fewstep[dinov2]'") from None
    with torch.device("meta"):
        return create_model("vit_large_patch14_dinov2", img_size=side, num_classes=0, **ARCHITECTURE)
