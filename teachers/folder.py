"""A diffusers model's folder, or the cached folder of a hub id: where its parts lie and what family it is of. No torch.

The parts are in unet/ and scheduler/, or, as google's first DDPMs on the hub have them, both at the root.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line
from fewstep.files import read_json

OWN = "fewstep.json"
"""What a folder says of itself where no scheduler of diffusers does: its scaling, its noise levels, its classes."""
LEVELS = 1000
"""Noise levels of a model without a schedule, where a sampler steps through a table of them."""
FLOW_ENDS = (0.001 / 0.999, 0.999 / 0.001)
"""Noise levels of flow matching at t = 0.001 and 0.999."""
_TEXT = ("StableDiffusion", "Flux", "PixArt", "Kandinsky", "IFPipeline", "TextToImage", "LatentConsistency")
_DECODERS = ("vqvae", "vae", "movq")
_NO_MODELS = ("Processor", "Extractor", "Tokenizer", "TokenizerFast", "Scheduler", "Mel")
"""How the classes end that are no models, and change nothing about the images that a network is given."""
WEIGHTS = "diffusion_pytorch_model"
_SAFETENSORS = re.compile(rf"{WEIGHTS}(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")
_PICKLES = re.compile(rf"{WEIGHTS}(?:-\d+-of-\d+)?\.bin")


@dataclass(frozen=True)
class ModelFolder:
    """The parts of a model: the folders of its network and its scheduler, and what its files of configuration hold."""

    path: Path
    network: Path
    scheduler: Path
    index: Mapping[str, Any]
    own: Mapping[str, Any]

    @cached_property
    def noise(self) -> Mapping[str, Any]:
        """The scheduler's configuration; empty where there is none."""
        path = self.scheduler / "scheduler_config.json"
        return read_json(path, {}) if path.is_file() else {}

    @cached_property
    def unet(self) -> Mapping[str, Any]:
        """The network's configuration; empty where there is none."""
        path = self.network / "config.json"
        return read_json(path, {}) if path.is_file() else {}

    @property
    def null_class(self) -> bool | None:
        """Whether the last of the network's classes means none; None where the folder does not say."""
        value = self.own.get("null_class")
        if not isinstance(value, bool | None):
            raise UserError(f"{self.path / OWN}: null_class", value, "must be true or false")
        return value

    @cached_property
    def variants(self) -> dict[str, list[Path]]:
        """The network's safetensors files by variant, such as fp16; "" is no variant. Each has one file or parts."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.network.glob("*.safetensors")):
            if path.is_file() and (match := _SAFETENSORS.fullmatch(path.name)):
                found.setdefault(match[1] or "", []).append(path)
        return {name: [path for path in files if "-of-" not in path.name] or files for name, files in found.items()}

    @property
    def variant(self) -> str | None:
        """The variant that is read: "" if it is there, or else the only one, unless a pickle is the network's own."""
        if "" in self.variants:
            return ""
        own_pickle = any(_PICKLES.fullmatch(path.name) for path in self.pickles)
        return next(iter(self.variants)) if len(self.variants) == 1 and not own_pickle else None

    @property
    def weights(self) -> list[Path]:
        """The network's safetensors files: one, or those of several parts."""
        return [] if self.variant is None else self.variants[self.variant]

    @property
    def weights_index(self) -> Path:
        """The file that says which of several parts each tensor of the weights is in."""
        return self.network / f"{WEIGHTS}.safetensors.index{f'.{self.variant}' if self.variant else ''}.json"

    @property
    def pickles(self) -> list[Path]:
        """Weights that are no safetensors."""
        found = (path for path in self.network.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        return sorted(path for path in found if path.is_file())


def shards(index: Path) -> dict[str, set[str]]:
    """Return the names of the tensors in each file of weights in parts, by diffusers' index of them."""
    found: dict[str, set[str]] = {}
    for tensor, name in read_json(index, {"weight_map": {str: str}})["weight_map"].items():
        if Path(name).name != name:
            raise UserError(index, name, "must be the name of a file in its folder")
        found.setdefault(name, set()).add(tensor)
    return found


def model_folder(folder: Path) -> ModelFolder:
    """The parts of a folder. UserError: it is none, or holds no model."""
    if not folder.is_dir():
        raise UserError(folder, None, "no such folder; give that of a diffusers model, or a hub id (OWNER/NAME)")
    if (folder / "teacher" / "unet").is_dir():
        raise UserError(folder, None, f"is a run: give {folder / 'teacher'}")
    index, own = folder / "model_index.json", folder / OWN
    network = folder / "unet" if (folder / "unet").is_dir() or not (folder / "config.json").is_file() else folder
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    if not index.exists() and not (network / "config.json").is_file():
        remedy = "holds no model: it has no model_index.json, and no config.json of a network or in its unet/"
        raise UserError(folder, None, remedy)
    return ModelFolder(
        folder,
        network,
        scheduler,
        read_json(index, {}) if index.exists() else {},
        read_json(own, {}) if own.exists() else {},
    )


def unsupported_pipeline(index: Mapping[str, Any]) -> str | None:
    """Return why a pipeline cannot be distilled, by its model_index.json, or None."""
    name = str(index.get("_class_name"))
    if "text_encoder" in index or "tokenizer" in index or name.startswith(_TEXT):
        return f"{name} makes images of text, which is not supported yet"
    for part, value in index.items():
        kind = value[-1] if isinstance(value, list) and value else None
        if part in ("unet", "scheduler") or not isinstance(kind, str) or kind.endswith(_NO_MODELS):
            continue
        if part in _DECODERS:
            return f"its images are decoded by {part} ({kind}): a latent model, which is not supported yet"
        return f"its pipeline has {part} ({kind}) beside unet and scheduler, which is not supported yet"
    return None


def located(name: str, revision: str | None, key: str, weights: str = "safetensors") -> Path:
    """A model's own folder, or where that of a hub id is cached: see `fetched`. `key`: what a revision is given by."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return fetched(name, revision, weights=weights)
    if revision is not None:
        raise UserError(key, revision, f"is of a hub id, and {name} is a folder: leave it out")
    return folder


def fetched(name: str, revision: str | None = None, weights: str = "safetensors") -> Path:
    """The folder that a hub id's model is cached in; it is downloaded where it is not. UserError: it cannot be had.

    First the configurations, which show pipelines that are not supported, then the network's weights of that ending;
    if there are none, those of half precision.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(name, None, "no such file or folder, and no hub id (OWNER/NAME)")
    from huggingface_hub import errors, snapshot_download

    at, texts = f"{name}, revision {revision}" if revision else name, ["*.json", "README.md"]
    names = [f"{place}{WEIGHTS}{part}.{weights}" for place in ("", "unet/") for part in ("", "-*-of-*")]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=texts))
        if (index := folder / "model_index.json").is_file() and (why := unsupported_pipeline(read_json(index, {}))):
            raise UserError(at, None, why)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*texts, *names]))
        if weights == "safetensors" and not model_folder(folder).weights:
            names = [f"{place}{WEIGHTS}.{kind}*.{weights}" for place in ("", "unet/") for kind in ("fp16", "bf16")]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*texts, *names]))
        return folder
    except UserError:
        raise
    except errors.GatedRepoError:
        remedy = "is gated on the hub: ask for access on its page there, then log in (hf auth login)"
    except errors.RepositoryNotFoundError:
        remedy = "no such folder, and no such model on the hub; a private one needs you logged in (hf auth login)"
    except errors.RevisionNotFoundError:
        remedy = "the hub has this model, but no such branch, tag or commit of it"
    except getattr(errors, "IncompleteSnapshotError", ()):  # of huggingface_hub 2
        remedy = "is cached in part, and the hub cannot be reached for the rest of it: try again when it can"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        remedy = "no such folder, and the hub cannot be reached and has nothing of it cached"
    except errors.HFValidationError:
        remedy = "no such folder, and no hub id (OWNER/NAME)"
    except Exception as error:  # of the network and the cache: each version has its own
        remedy = f"no such folder, and not to be had from the hub ({first_line(error)})"
    raise UserError(at, None, remedy)
