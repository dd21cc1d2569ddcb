"""Train small-cnn and write its weights (about ten minutes on one core).

    python -m fewstep.eval.features.make_small_cnn CIFAR10 FASHION_MNIST MNIST [FILE.safetensors]

The first three are folders of parquet files, `train-*.parquet` and `test-*.parquet`, with images and labels, as the hub
has them (uoft-cs/cifar10, zalando-datasets/fashion_mnist, ylecun/mnist). One network learns the classes of all three,
each by a linear layer on the same 64 features, and to draw each image in 8x8 pixels from them, so that they also tell
images apart that no class is known of. Crops are shifted by up to two pixels and photographs mirrored; nothing blurs
images or changes their colours, which the features have to see. One thread and a fixed seed: the same versions and
processor give the same tensors.
"""

import io
import platform
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fewstep.eval.features.extractors import sha256_tensors
from fewstep.eval.features.small_cnn import FEATURES, SIDE, WEIGHTS, SmallCNN, prepared
from fewstep.files import write_bytes

STEPS, LEARNING_RATE, DRAWN = 3_000, 4e-3, 8  # drawn: side of the drawings in pixels
BATCH = {"CIFAR-10": 64, "Fashion-MNIST": 24, "MNIST": 24}  # images of each data set in a batch
WEIGHT = {"CIFAR-10": 1.0, "Fashion-MNIST": 0.4, "MNIST": 0.4, "drawings": 4.0}  # of each loss
Labelled = tuple[Tensor, Tensor]


def read_parquet(folder: Path, split: str, count: int | None = None) -> Labelled:
    """Return images uint8 [N, C, H, W] and labels int64 [N] of a split, in the order of the files.

    count: of the first rows of each file alone.
    """
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    tables = [pyarrow.parquet.read_table(path).slice(0, count) for path in files]
    column = "img" if "img" in tables[0].column_names else "image"
    rows = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for table in tables for row in table[column].to_pylist()]
    images = torch.from_numpy(np.stack(rows))
    labels = [label for table in tables for label in table["label"].to_pylist()]
    return images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def augmented(images: Tensor, generator: Generator, *, mirrored: bool) -> Tensor:
    """Return `prepared` images [N, 3, 32, 32] shifted by -2..2 pixels, all alike; half mirrored if asked for."""
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    row, column = torch.randint(0, 5, (2,), generator=generator).tolist()
    shifted = padded[:, :, row : row + SIDE, column : column + SIDE]
    flip = mirrored & (torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5)
    return torch.where(flip, shifted.flip(-1), shifted)


def batch(data: dict[str, Labelled], generator: Generator) -> tuple[Tensor, list[Tensor]]:
    """Return images [sum of BATCH, 3, 32, 32] and the labels of each data set."""
    images, labels = [], []
    for name, (pixels, classes) in data.items():
        rows = torch.randint(0, len(pixels), (BATCH[name],), generator=generator)
        drawn = prepared(pixels[rows].expand(-1, 3, -1, -1))
        images.append(augmented(drawn, generator, mirrored=name == "CIFAR-10"))
        labels.append(classes[rows])
    return torch.cat(images).contiguous(memory_format=torch.channels_last), labels


def train(data: dict[str, Labelled]) -> tuple[SmallCNN, nn.ModuleDict]:
    """Return the trained network and the linear layers that classify its features."""
    torch.manual_seed(0)
    generator = Generator().manual_seed(0)
    network = SmallCNN(normalise=True).to(memory_format=torch.channels_last)
    classify = nn.ModuleDict({name: nn.Linear(FEATURES, 10) for name in data})
    draw = nn.Linear(FEATURES, 3 * DRAWN**2)
    parameters = [each for module in (network, classify, draw) for each in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
    for step in range(STEPS):
        images, labels = batch(data, generator)
        features = network(images)
        drawings = F.adaptive_avg_pool2d(images, DRAWN).flatten(1)
        loss = WEIGHT["drawings"] * F.mse_loss(draw(features), drawings)
        for name, part, classes in zip(data, features.split(list(BATCH.values())), labels, strict=True):
            loss = loss + WEIGHT[name] * F.cross_entropy(classify[name](part), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"step {step:,} of {STEPS:,}, loss {loss.item():.3f}", flush=True)
    return network.eval(), classify.eval()


def folded(network: SmallCNN) -> dict[str, Tensor]:
    """Return the weights of a network without batch norms that does the same, float16."""
    plain = SmallCNN()
    assert isinstance(network.norm, nn.BatchNorm1d)
    for index, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        plain.convs[index] = fuse_conv_bn_eval(conv, norm)
    plain.embed = fuse_linear_bn_eval(network.embed, network.norm)
    return {name: tensor.half().contiguous() for name, tensor in plain.state_dict().items()}


@torch.inference_mode()
def accuracy(network: SmallCNN, classify: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified rightly, in 0..1."""
    parts = images.expand(-1, 3, -1, -1).split(200)
    found = torch.cat([classify(network(prepared(part))).argmax(1) for part in parts])
    return (found == labels).float().mean().item()


def main(folders: list[Path], path: Path) -> None:
    """Train, print the accuracies, write the weights with what they are in the file's metadata."""
    torch.set_num_threads(1)
    places = dict(zip(BATCH, folders, strict=True))
    trained, classify = train({name: read_parquet(place, "train") for name, place in places.items()})
    weights, network = folded(trained), SmallCNN()
    network.load_state_dict(weights)
    tests = {name: read_parquet(place, "test") for name, place in places.items()}
    accuracies = {name: accuracy(network, classify[name], *test) for name, test in tests.items()}
    metadata = {
        **{f"accuracy_{name}": f"{value:.4f}" for name, value in accuracies.items()},
        "script": "fewstep.eval.features.make_small_cnn",
        "data": "the training images of CIFAR-10, Fashion-MNIST and MNIST; accuracies are of their test images",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "sha256_tensors": sha256_tensors(weights),
    }
    write_bytes(path, save(weights, metadata))
    print(f"accuracy {accuracies}; wrote {path}")


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:4]], Path(sys.argv[4]) if len(sys.argv) > 4 else WEIGHTS)
