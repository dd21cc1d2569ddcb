"""digits-cnn: a small classifier of the 8x8 handwritten digits whose inner features judge generated digits.

Its weights ship with the package; `python -m fewstep.eval.features.make_digits_cnn` makes them again.
The images are scikit-learn's copy of a UCI data set, "Optical Recognition of Handwritten Digits" (CC BY 4.0).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.eval.features.extractors import OpenNetwork
from fewstep.eval.features.weights_file import read_shipped

WEIGHTS = Path(__file__).parent / "weights" / "digits-cnn.safetensors"


class DigitsCNN(nn.Module):
    """Three convolutions and two linear layers, 105,000 parameters.

    The features are the 64 inputs of the last layer's nonlinearity: a covariance of 64 x 64 is well
    determined by the 1,000 images of a seed block, and without the nonlinearity no feature is stuck at zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 64, 3, padding=1)
        self.embed = nn.Linear(64 * 4 * 4, 64)
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (or float 0..255) [N, 1, 8, 8] -> features [N, 64] float32."""
        x = images.float() / 127.5 - 1
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x))
        return self.embed(x.flatten(1))

    def logits(self, features: Tensor) -> Tensor:
        """Features [N, 64] -> class logits [N, 10]."""
        return self.classify(F.relu(features))


def read_weights(_: Path | None = None) -> dict[str, Tensor]:
    """The shipped tensors; UserError where they are damaged."""
    return read_shipped(WEIGHTS)


def open_network(tensors: dict[str, Tensor], device: torch.device) -> OpenNetwork:
    """The classifier's features; its ten logits are not those of the Inception Score."""
    network = DigitsCNN()
    network.load_state_dict(tensors)
    return OpenNetwork(features=network.requires_grad_(False).eval().to(device), used=tensors)


def digits() -> tuple[Tensor, Tensor]:
    """uint8 [1797, 1, 8, 8], grey levels 0..16 spread to 0..255, and labels int64 [1797]."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (torch.as_tensor(pixels) * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    return images, torch.as_tensor(labels).long()
