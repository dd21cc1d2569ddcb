"""Feature extractors: uint8 images in, float32 features out.

`inception` is torch-fidelity's InceptionV3 (features of the last pooling, 2048 values), `dinov2` DINOv2's ViT-L/14
(its class token, 1024 values), `digits-cnn` our own small classifier for the 8x8 digits, whose weights ship with the
package. What the first two need is imported where they are asked for: torch-fidelity and torchvision take seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import FEATURES, DigitsCNN

EXTRACTORS = ("digits-cnn", "inception", "dinov2")
METRIC_NAMES = {"inception": "FID", "dinov2": "FD-DINOv2"}  # of the Frechet distance; another extractor's: FD (name)
DIGITS_CNN_WEIGHTS = Path(__file__).parent / "weights" / "digits-cnn.safetensors"


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network that turns images into features.

    `sha256` is over the tensors in use (names, types, shapes, values), so one network in two file formats has
    one hash. `channels` is what it takes: grey is repeated when it takes 3. `logits` takes features [N, D] to the
    classes' logits [N, K] of the Inception Score; None where the network has none, or its weights lack them.
    """

    name: str
    sha256: str
    resize: str
    dim: int
    channels: int
    device: torch.device
    network: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W], C in {1, 3} -> float32 [N, dim] on the CPU.

        UserError (eval.extractor) when it does not take images of this shape.
        """
        check_shape(self.name, images.shape[1:])
        images = images.expand(-1, self.channels, -1, -1)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU's features equal a processor's
            return self.network(images.to(self.device)).cpu()

    @property
    def metric_name(self) -> str:
        """What the Frechet distance of its features is called."""
        return METRIC_NAMES.get(self.name, f"FD ({self.name})")

    def to_json(self) -> dict[str, str]:
        """The part of the protocol that is the extractor's."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize}


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """UserError when the extractor cannot judge images of shape (C, H, W); loads nothing."""
    if name == "digits-cnn" and tuple(shape) != (1, 8, 8):
        remedy = f"takes grey 8x8 images, not {tuple(shape)} (C, H, W); use eval.extractor=inception"
        raise UserError("eval.extractor", name, remedy)


def check_extractor(name: str, weights: Path | None, shape: tuple[int, ...]) -> None:
    """What can be known before hours of training: name, image shape, the weights' names and shapes.

    `weights` is a file for the extractor of that name. With none given, Inception's and DINOv2's are fetched here: a
    machine without a network says so first. UserError: see `load_extractor`.
    """
    if name not in EXTRACTORS:
        raise UserError("eval.extractor", name, f"choose one of {', '.join(EXTRACTORS)}")
    if name == "digits-cnn" and weights is not None:
        raise UserError("eval.inception_weights", str(weights), f"is not used by eval.extractor={name}; leave it out")
    check_shape(name, shape)
    if name == "inception":
        from fewstep.eval.features.inception import inception_weights, read_inception_weights

        read_inception_weights(inception_weights(weights))
    elif name == "dinov2":
        from fewstep.eval.features.dinov2 import load_dinov2_weights

        load_dinov2_weights(weights)


def load_extractor(name: str, weights: Path | None, device: torch.device | str) -> Extractor:
    """The named extractor, ready on a device.

    `weights`: a file with the weights of Inception or DINOv2 (.safetensors or .pth), None for the published ones.
    UserError: an unknown name; a file that is missing, unreadable, or has other tensors than the network; no timm.
    """
    device = torch.device(device)
    if name == "digits-cnn":
        return _digits_cnn(device)
    if name == "inception":
        return _inception(weights, device)
    if name == "dinov2":
        return _dinov2(weights, device)
    raise UserError("eval.extractor", name, f"choose one of {', '.join(EXTRACTORS)}")


def _inception(weights: Path | None, device: torch.device) -> Extractor:
    from fewstep.eval.features.inception import (
        inception_logits,
        inception_network,
        inception_weights,
        read_inception_weights,
    )

    tensors = read_inception_weights(inception_weights(weights))
    return Extractor(
        name="inception",
        sha256=sha256_tensors({key: value for key, value in tensors.items() if _reaches_pool(key)}),
        resize="bilinear to 299x299 as TensorFlow 1 does it (torch-fidelity)",
        dim=2048,
        channels=3,
        device=device,
        network=inception_network(tensors, device),
        logits=inception_logits(tensors),
    )


def _dinov2(weights: Path | None, device: torch.device) -> Extractor:
    from fewstep.eval.features.dinov2 import ARCHITECTURE, dinov2_network, load_dinov2_weights

    tensors = load_dinov2_weights(weights)
    return Extractor(
        name="dinov2",
        sha256=sha256_tensors(tensors),
        resize="bilinear to 224x224 as TensorFlow 1 does it (torch-fidelity)",
        dim=ARCHITECTURE["embed_dim"],
        channels=3,
        device=device,
        network=dinov2_network(tensors, device),
    )


def _digits_cnn(device: torch.device) -> Extractor:
    tensors = load_file(DIGITS_CNN_WEIGHTS)
    with safe_open(DIGITS_CNN_WEIGHTS, "pt") as file:
        stored = file.metadata()["sha256_tensors"]
    if sha256_tensors(tensors) != stored:
        raise UserError(DIGITS_CNN_WEIGHTS, None, "is damaged (its tensors do not give its hash); reinstall fewstep")
    network = DigitsCNN()
    network.load_state_dict(tensors)
    network.requires_grad_(False).eval().to(device)
    return Extractor(
        name="digits-cnn",
        sha256=stored,
        resize="none (8x8)",
        dim=FEATURES,
        channels=1,
        device=device,
        network=network,
    )


def _reaches_pool(key: str) -> bool:
    """Whether a tensor has a part in the pooled features: Inception's logits and batch counters have none."""
    return not key.startswith("fc.") and not key.endswith("num_batches_tracked")


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, in order of their names."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
