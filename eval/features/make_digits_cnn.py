"""Train digits-cnn and write its weights (about a minute on one core).

    python -m fewstep.eval.features.make_digits_cnn [eval/features/weights/digits-cnn.safetensors]

Four fifths of the digits train it, under shifts by up to one pixel and Gaussian noise; the held-out fifth
gives the accuracy that is printed and kept in the file. One thread and a fixed seed: the same versions and
processor give the same tensors.
"""

import platform
import sys
from pathlib import Path

import sklearn
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from fewstep.eval.features.digits_cnn import WEIGHTS, DigitsCNN, digits
from fewstep.eval.features.extractors import sha256_tensors
from fewstep.files import write_bytes

EPOCHS, BATCH, NOISE = 80, 64, 16.0  # noise: standard deviation in grey levels of 0..255


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [N, 1, 8, 8] -> float [N, 1, 8, 8] in 0..255: each image shifted by -1..1 pixels, noise added."""
    padded = F.pad(images.float(), (1, 1, 1, 1))
    shift = torch.randint(0, 3, (2, len(images), 1, 1), generator=generator)
    rows, columns = shift[0] + torch.arange(8)[:, None], shift[1] + torch.arange(8)
    shifted = padded[torch.arange(len(images))[:, None, None], 0, rows, columns].unsqueeze(1)
    noise = NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (shifted + noise * torch.randn(shifted.shape, generator=generator)).clamp(0, 255)


def train() -> tuple[DigitsCNN, float]:
    """The trained classifier and its accuracy on the held-out fifth."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, labels = digits()
    order = torch.randperm(len(images), generator=generator)
    held_out, used = order[: len(order) // 5], order[len(order) // 5 :]
    network = DigitsCNN()
    steps = EPOCHS * (len(used) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in used[torch.randperm(len(used), generator=generator)].split(BATCH)[: len(used) // BATCH]:
            features = network(augment(images[batch], generator))
            loss = F.cross_entropy(network.logits(features), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        found = network.logits(network(images[held_out])).argmax(1)
    return network.eval(), (found == labels[held_out]).float().mean().item()


def main(path: Path) -> None:
    """Train, print the accuracy, write the weights with what they are in the file's metadata."""
    torch.set_num_threads(1)
    network, accuracy = train()
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    metadata = {
        "accuracy_held_out": f"{accuracy:.4f}",
        "script": "fewstep.eval.features.make_digits_cnn",
        "data": "scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}",
        "sha256_tensors": sha256_tensors(weights),
    }
    write_bytes(path, save(weights, metadata))
    print(f"accuracy on the held-out fifth {accuracy:.4f}; wrote {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS)
