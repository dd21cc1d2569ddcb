"""Programs of torch.export to be read: a small generator, and changed copies of its archive."""

import json
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

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


def changed(program: Path, path: Path, *, replace=None, add=None, compression=ZIP_STORED):
    """A copy of an archive: `replace` maps parts to functions of their bytes, `add` parts to bytes."""
    replace, add = replace or {}, add or {}
    with ZipFile(program) as old, ZipFile(path, "w", compression) as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            part = name.removeprefix(f"{root}/")
            content = old.read(name)
            new.writestr(name, replace[part](content) if part in replace else content)
        for part, content in add.items():
            new.writestr(f"{root}/{part}", content)
    return path


def edited(edit):
    """A function of JSON bytes that applies `edit` to their value, in place."""

    def apply(content):
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return apply
