"""Weights of a feature extractor: found or fetched, read without running code, checked by name and shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.errors import UserError, unreadable
from fewstep.eval.array_file import read_tensors


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """The weights that a network is published with.

    `key` is the configuration key that names a file with them, `network` and `owner` are the network's full and short
    name, `sha256` is that of the file at `url`, or its beginning.
    """

    key: str
    network: str
    owner: str
    url: str
    sha256: str

    def find(self, path: Path | None) -> Path:
        """The weights file: the user's, or the published one, fetched into torch's hub folder if not there.

        UserError: the user's file is missing; the download failed (which file, where it is looked for, and how to
        supply it).
        """
        if path is not None:
            if not path.expanduser().is_file():
                raise UserError(self.key, str(path), f"no such file; give {self.owner} weights as .safetensors or .pth")
            return path.expanduser()
        cached = Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[1]
        if not cached.is_file():
            self._download(cached)
        return cached

    def _download(self, target: Path) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(target), hash_prefix=self.sha256)
        except (OSError, RuntimeError) as error:
            remedy = (
                f"{self.owner}'s weights {target.name} are not in {target.parent} and could not be fetched from "
                f"{self.url} ({error}); fetch them elsewhere and pass --{self.key} PATH"
            )
            raise UserError(self.key, None, remedy) from None

    def read(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a file by name, on the CPU; UserError: it cannot be read, or holds something else."""
        what = "safetensors or as a .pth of tensors"
        if path.suffix != ".safetensors":
            return read_tensors(self.key, path, what)
        with unreadable(self.key, f"cannot be read as {what}", str(path)):
            return load_file(path)

    def check(self, path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
        """UserError where the tensors of a file are not those expected, by name and shape."""
        wrong = [name for name in expected if name not in tensors or tuple(tensors[name].shape) != expected[name]]
        wrong += [name for name in tensors if name not in expected]
        if wrong:
            faults = f"{len(wrong)} tensors are missing, unknown or of another shape, the first is {wrong[0]!r}"
            raise UserError(self.key, str(path), f"is not {self.network}: {faults}")
