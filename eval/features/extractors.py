"""Feature extractors: uint8 images in, float32 features out. `fewstep.eval.features.table` lists them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.eval.features.table import EXTRACTORS, Specification


@dataclass(frozen=True, kw_only=True)
class OpenNetwork:
    """A network on its device.

    features: uint8 [N, C, H, W] there -> [N, D] float32. used: the tensors that they depend on. logits: features
    [N, D] -> the classes' logits [N, K] of the Inception Score; None: the network has none, or its weights lack them.
    """

    features: Callable[[Tensor], Tensor]
    used: Mapping[str, Tensor]
    logits: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Extractor(Specification):
    """A network that turns images into features.

    `sha256` is over the tensors in use (names, types, shapes, values), so one network in two file formats has one hash.
    """

    sha256: str
    device: torch.device
    network: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W], C in {1, 3} -> float32 [N, dim] on the CPU.

        UserError (eval.extractor) when it does not take images of this shape.
        """
        self.check_shape(images.shape[1:])
        parts = images.expand(-1, self.channels, -1, -1).split(self.cpu_batch if self.device.type == "cpu" else 100)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU's features equal a processor's
            return torch.cat([self.network(part.to(self.device)).cpu() for part in parts])

    def to_json(self) -> dict[str, str]:
        """The part of the protocol that is the extractor's."""
        return {"name": self.name, "sha256": self.sha256, "resize": self.resize}


def check_extractor(name: str, weights: Path | None, shape: tuple[int, ...]) -> None:
    """What can be known before hours of training: image shape, the weights' names and shapes.

    With no file given, Inception's and DINOv2's weights are fetched here: a machine without a network says so first.
    UserError: see `load_extractor`.
    """
    EXTRACTORS[name].check_shape(shape)
    import_module(EXTRACTORS[name].module).read_weights(weights)


def load_extractor(name: str, weights: Path | None, device: torch.device | str) -> Extractor:
    """The named extractor, ready on a device.

    `weights`: a file with its weights (.safetensors or .pth), None for the published or shipped ones.
    UserError: a file that is missing, unreadable, or has other tensors than the network; no timm.
    """
    specification, device = EXTRACTORS[name], torch.device(device)
    module: Any = import_module(specification.module)
    opened: OpenNetwork = module.open_network(module.read_weights(weights), device)
    return Extractor(
        **vars(specification),
        sha256=sha256_tensors(opened.used),
        device=device,
        network=opened.features,
        logits=opened.logits,
    )


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, in order of their names."""
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
