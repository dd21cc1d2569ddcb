"""Programs of torch.export to be read: a small generator, and a copy of an archive with a pickle in it."""

from pathlib import Path
from zipfile import ZipFile

import torch
from torch import nn
from torch.export import Dim


class Generator(nn.Module):
    """A small generator with what networks have: norms, a batch that is folded, a constant, a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, noise):
        x = nn.functional.gelu(self.norm(self.first(noise)), approximate="tanh")
        x = x.reshape(x.shape[0] * 4, 8, 8).softmax(-1).reshape(-1, 4, 8, 8)
        time = torch.full((noise.shape[0],), 3.0, device=noise.device)
        return torch.tanh(self.last(x) * self.scale + time.sin()[:, None, None, None])


class Of(nn.Module):
    """The generator that a function of noise is."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, noise):
        return self.function(noise)


def exported(path, module, *inputs, free=True):
    """Write `module` as a .pt2 whose first dimension is free."""
    batch = Dim("batch", min=1, max=4096)
    shapes = [{0: batch} if free else None for _ in inputs]
    with torch.no_grad():
        torch.export.save(torch.export.export(module.eval(), inputs, dynamic_shapes=shapes), path)
    return path


def pickled(program: Path, path: Path, planted: Path):
    """A copy of a program whose sample inputs are a pickle that makes the folder `planted` when it is read."""
    with ZipFile(program) as old, ZipFile(path, "w") as new:
        for name in old.namelist():
            harmful = name.endswith("sample_inputs/model.pt")
            new.writestr(name, f"cos\nmkdir\n(V{planted}\ntR.".encode() if harmful else old.read(name))
    return path
