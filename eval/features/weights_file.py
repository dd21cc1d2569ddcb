"""Weights of a feature extractor: found or fetched, read without running code, checked by name and shape."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.errors import UserError, unreadable
from fewstep.eval.array_file import read_tensors
from fewstep.eval.features.extractors import sha256_tensors

KEY, READ_AS = "eval.weights", "safetensors or as a .pth of tensors"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """The weights that a network is published with.

    `network` and `owner` are its full and short name, `sha256` is that of the file at `url`, or its beginning.
    """

    network: str
    owner: str
    url: str
    sha256: str

    def read(self, path: Path | None, network: nn.Module, unused: str = "") -> dict[str, Tensor]:
        """The tensors of a file by name, on the CPU: the user's, or the published one, fetched if it is not there.

        They are those of `network`, by name and shape; a tensor called `unused` is left out. UserError: the file is
        missing, cannot be fetched or read, or holds other tensors.
        """
        path = self._published() if path is None else path.expanduser()
        if not path.is_file():
            raise UserError(KEY, str(path), f"no such file; give {self.owner} weights as .safetensors or .pth")
        if path.suffix == ".safetensors":
            with unreadable(KEY, f"cannot be read as {READ_AS}", str(path)):
                tensors = load_file(path)
        else:
            tensors = read_tensors(KEY, path, READ_AS)
        tensors.pop(unused, None)
        found, expected = ({name: x.shape for name, x in each.items()} for each in (tensors, network.state_dict()))
        if wrong := [name for name in expected | found if found.get(name) != expected.get(name)]:
            faults = f"{len(wrong)} tensors are missing, unknown or of another shape, the first is {wrong[0]!r}"
            raise UserError(KEY, str(path), f"is not {self.network}: {faults}")
        return tensors

    def _published(self) -> Path:
        """The published file in torch's hub folder, fetched into it if it is not there."""
        target = Path(torch.hub.get_dir()) / "checkpoints" / self.url.rsplit("/", 1)[1]
        try:
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self.url, str(target), hash_prefix=self.sha256)
        except (OSError, RuntimeError) as error:
            remedy = (
                f"{self.owner}'s weights {target.name} are not in {target.parent} and could not be fetched from "
                f"{self.url} ({error}); fetch them elsewhere and pass --{KEY} PATH, or measure without a download: "
                "--eval.extractor small-cnn"
            )
            raise UserError(KEY, None, remedy) from None
        return target


def read_shipped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file of the package; UserError if they do not give the hash in its metadata."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        if sha256_tensors(tensors) != file.metadata()["sha256_tensors"]:
            raise UserError(path, None, "is damaged (its tensors do not give its hash); reinstall fewstep")
    return tensors
