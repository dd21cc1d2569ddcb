"""What a training step costs on many GPUs, worked out from counted arithmetic: the table of docs/scaling.md.

    python -m fewstep.pipeline.speed.scaling

Arithmetic and weights are counted on networks without memory. The rest are a GPU's figures, which are given.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.eval.report.tables import table_markdown

GRADIENT_BYTES = 4  # of a weight: DDP sums them in float32
STATE_BYTES = 24  # of a weight: itself, gradient, flat gradient, two moments, average, in float32
BACKWARD = 2 / 3  # share of a step in which gradients can be on their way


@dataclass(frozen=True)
class Network:
    """A network, and the batch of a usual recipe for it."""

    name: str
    batch: int
    shape: tuple[int, int]
    """Channels and side of what it sees."""
    channels: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]

    def build(self) -> UNet2DModel:
        """The network, on the device that has no memory."""
        kinds = [("Attn" if has else "") for has in self.attention]
        with torch.device("meta"):
            return UNet2DModel(
                sample_size=self.shape[1],
                in_channels=self.shape[0],
                out_channels=self.shape[0],
                block_out_channels=self.channels,
                layers_per_block=self.layers,
                down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
                up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
                attention_head_dim=64,
            )

    def counted(self) -> tuple[int, float]:
        """Its weights, and the floating-point operations of a forward and a backward pass for an image."""
        network = self.build()
        with FlopCounterMode(display=False) as counter:
            image = torch.zeros(1, *[self.shape[0], self.shape[1], self.shape[1]], device="meta")
            network(image, torch.zeros(1, device="meta")).sample.sum().backward()
        return sum(each.numel() for each in network.parameters()), counter.get_total_flops()


NETWORKS = (
    Network("32x32 (cifar10)", 256, (3, 32), (128, 256, 256), 2, (False, True, False)),
    Network("64x64 (as ImageNet's CD)", 2048, (3, 64), (192, 384, 576, 768), 3, (False, True, True, True)),
    Network("256x256 (latents 3x64x64)", 1024, (3, 64), (224, 448, 672, 896), 2, (False, True, True, True)),
    Network("a billion (latents 4x32x32)", 2048, (4, 32), (512, 1024, 1536, 1536), 2, (False, True, True, True)),
)


@dataclass(frozen=True)
class GPU:
    """Floating-point operations a second that a UNet reaches, bytes a second each way to neighbours, price an hour."""

    rate: float
    inside: float
    """Bandwidth among the GPUs of a node."""
    across: float
    """Bandwidth of a node to the others: rings go through the links of all its GPUs."""
    price: float
    node: int = 8


def step(weights: int, flops: float, batch: int, gpus: int, gpu: GPU) -> tuple[float, float]:
    """Seconds of a training step: the arithmetic, and how much of the gradients' sum it does not hide.

    A ring sends every gradient 2(n - 1)/n times (Patarasuk & Yuan 2009), over its slowest link.
    """
    arithmetic = batch / gpus * flops / gpu.rate
    bandwidth = gpu.inside if gpus <= gpu.node else gpu.across
    sent = 2 * (gpus - 1) / gpus * weights * GRADIENT_BYTES / bandwidth
    return arithmetic, max(0.0, sent - BACKWARD * arithmetic)


def overtaken(weights: int, flops: float, gpu: GPU) -> float:
    """Images a GPU below which the sum of gradients across nodes takes longer than the backward pass hides."""
    return 2 * weights * GRADIENT_BYTES / gpu.across / (BACKWARD * flops / gpu.rate)


def table(gpu: GPU, counts: Sequence[int] = (1, 8, 64, 512)) -> str:
    """A row for each network, and one for each of them on a number of GPUs, in Markdown."""
    networks, steps = [], []
    for network in NETWORKS:
        weights, flops = network.counted()
        sizes = f"{weights / 1e6:,.0f} M", f"{flops / 1e9:,.0f}", f"{weights * STATE_BYTES / 1e9:,.1f} GB"
        networks.append((network.name, *sizes, f"{overtaken(weights, flops, gpu):.1f}"))
        for gpus in counts:
            row = f"{network.name}, {network.batch:,}", str(gpus)
            if network.batch < gpus:
                steps.append((*row, *["–"] * 4))
                continue
            arithmetic, exposed = step(weights, flops, network.batch, gpus, gpu)
            total = arithmetic + exposed
            dollars = gpus * gpu.price / 3600 * total / network.batch * 1e6
            times = f"{1000 * total:,.1f}", f"{1000 * exposed:,.1f}", f"{100 * arithmetic / total:.0f} %"
            steps.append((*row, *times, f"{dollars:.2f}"))
    head = "network", "weights", "GFLOP an image, both passes", "state", "images/GPU to hide the gradients"
    first = table_markdown(head, networks)
    head = "network, batch", "GPUs", "ms a step", "not hidden", "of 1 GPU's rate, each", "$ a million images"
    return first + "\n" + table_markdown(head, steps)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table for a GPU."""
    parser = argparse.ArgumentParser(prog="python -m fewstep.pipeline.speed.scaling", description=__doc__)
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of the tensor cores in bf16 (H100 SXM)")
    parser.add_argument("--share", type=float, default=0.35, help="of that which a UNet reaches: fewstep speed tells")
    parser.add_argument("--inside", type=float, default=450e9, help="bytes/s each way inside a node (NVLink 4)")
    parser.add_argument("--across", type=float, default=400e9, help="bytes/s of a node to others (8 links of 400 Gb/s)")
    parser.add_argument("--price", type=float, default=3.0, help="dollars an hour of a GPU")
    given = parser.parse_args(argv)
    print(table(GPU(given.peak * given.share, given.inside, given.across, given.price)), end="")


if __name__ == "__main__":
    main()
