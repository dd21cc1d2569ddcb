"""A teacher's trajectories on disk: many times larger than memory may be, so that they are mapped and not read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fewstep.files import read_json, write_bytes, write_json

SHARD = 1000
"""Trajectories in a file."""
_RECORD, _FORM = "trajectories.json", {"number": int, "sigmas": [float]}


@dataclass(frozen=True)
class Trajectories:
    """Points of N trajectories at the descending noise levels `sigmas` [L + 1].

    shards: [up to SHARD, L + 1, C, H, W] each, float16 or float32; all but the last have SHARD trajectories.
    """

    sigmas: Sequence[float]
    shards: Sequence[Tensor]
    num_classes: int | None = None
    """Of a class-conditional teacher; trajectory i is of class i % num_classes."""

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def take(self, index: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The points of trajectories `index` [B] at levels `level` [B] and their ends, each float32 [B,C,H,W]."""
        start, end = np.empty((2, len(index), *self.shards[0].shape[2:]), np.float32)
        for place, (each, at) in enumerate(zip(index.tolist(), level.tolist(), strict=True)):
            points = self._arrays[each // SHARD][each % SHARD]
            start[place], end[place] = points[at], points[-1]
        return torch.from_numpy(start), torch.from_numpy(end)

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        """The shards for numpy, which takes one point in a tenth of torch's time."""
        return [shard.numpy() for shard in self.shards]

    def labels(self, index: Tensor) -> Tensor | None:
        """The classes of trajectories `index` [B], int64 [B]; None where there are none."""
        return None if self.num_classes is None else index % self.num_classes

    def ends(self, number: int) -> Tensor:
        """The images at the ends of the first `number` trajectories, float32 [number, C, H, W]."""
        return torch.cat([shard[:, -1] for shard in self.shards[: -(-number // SHARD)]])[:number].float()


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"points-{number:05d}.safetensors"


def write_shard(path: Path, points: Tensor) -> None:
    """Write the points of a shard, whole or not at all."""
    write_bytes(path, save({"points": points.contiguous()}))


def write_record(folder: Path, number: int, sigmas: Sequence[float], num_classes: int | None = None) -> None:
    """Write what the shards hold together."""
    classes = {} if num_classes is None else {"num_classes": num_classes}
    write_json(folder / _RECORD, {"number": number, "sigmas": list(sigmas)} | classes)


def read_trajectories(folder: Path) -> Trajectories:
    """The trajectories of a finished stage, mapped into memory."""
    record = read_json(folder / _RECORD, _FORM)
    shards = [load_file(shard_path(folder, number))["points"] for number in range(-(-record["number"] // SHARD))]
    return Trajectories(record["sigmas"], shards, record.get("num_classes"))
