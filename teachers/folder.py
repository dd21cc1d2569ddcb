"""A diffusers model's folder, or the cached folder of a hub id: where its parts lie and what family it is of. No torch.

The parts are in unet/ and scheduler/, or, as google's first DDPMs on the hub have them, both at the root.
"""

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
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_DDPM = (
    "CosineDPM",
    "DDIM",
    "DDPM",
    "DEIS",
    "DPMSolver",
    "Euler",
    "Heun",
    "IPNDM",
    "KDPM2",
    "LCM",
    "LMS",
    "PNDM",
    "TCD",
)
_DDPM += ("UniPC", "SASolver")
"""What the schedulers of a DDPM's schedule are called; they differ in how they sample alone."""
_TEXT = ("StableDiffusion", "Flux", "PixArt", "Kandinsky", "IFPipeline", "TextToImage", "LatentConsistency")
WEIGHTS = "diffusion_pytorch_model"


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

    @property
    def weights(self) -> list[Path]:
        """The network's safetensors files: one, or those of several parts."""
        one = self.network / f"{WEIGHTS}.safetensors"
        parts = sorted(self.network.glob(f"{WEIGHTS}-*-of-*.safetensors"))
        return [path for path in ([one] if one.exists() else parts) if path.is_file()]

    @property
    def pickles(self) -> list[Path]:
        """Weights that are no safetensors."""
        found = (path for path in self.network.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        return sorted(path for path in found if path.is_file())


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


def own_scaling(model: ModelFolder) -> tuple[dict[str, Any], float, float, Path] | None:
    """A scaling's JSON, the noise levels it is for and the file that says so; None: a DDPM's schedule decides.

    It is that of fewstep.json, or of a scheduler of diffusers that is of another family: EDM, VE, flow matching.
    UserError: a scheduler of a family that is not known, and numbers that cannot be.
    """
    found = _own_scaling(model)
    if found is not None and not 0 < found[1] < found[2]:
        raise UserError(found[3], found[1:3], "must be 0 < sigma_min < sigma_max")
    return found


def _own_scaling(model: ModelFolder) -> tuple[dict[str, Any], float, float, Path] | None:
    if "scaling" in model.own:
        path = model.path / OWN
        value = read_json(path, {"scaling": {"name": str}, "sigma_min": float, "sigma_max": float})
        numbers = {key: number for key, number in value["scaling"].items() if key not in ("name", "table")}
        _numbers(path, numbers, tuple(numbers))
        return value["scaling"], value["sigma_min"], value["sigma_max"], path
    noise, path = model.noise, model.scheduler / "scheduler_config.json"
    kind = noise.get("_class_name")
    if kind in _EDM:
        if noise.get("prediction_type", "epsilon") != "epsilon":
            remedy = "of an EDM scheduler is not supported: its network gives F of Karras 2022 (epsilon)"
            raise UserError(f"{path}: prediction_type", noise["prediction_type"], remedy)
        values = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0} | {**noise}
        ends = _numbers(path, values, ("sigma_data", "sigma_min", "sigma_max"))
        return {"name": "edm", "sigma_data": ends[0]}, ends[1], ends[2], path
    if kind == "FlowMatchEulerDiscreteScheduler":
        (steps,) = _numbers(path, {"num_train_timesteps": 1000} | {**noise}, ("num_train_timesteps",))
        return {"name": "flow_matching", "num_train_timesteps": steps}, *FLOW_ENDS, path
    if kind == "ScoreSdeVeScheduler":  # of images in [0, 1]: a half of ours
        low, high = _numbers(path, {"sigma_min": 0.01, "sigma_max": 1348.0} | {**noise}, ("sigma_min", "sigma_max"))
        if not model.unet.get("center_input_sample"):
            remedy = "is of images in [0, 1], which a network of its family centres: center_input_sample must be true"
            raise UserError(path, kind, remedy)
        return {"name": "ve", "unit": 0.5}, 2 * low, 2 * high, path
    if isinstance(kind, str) and (not kind.startswith(_DDPM) or "FlowMatch" in kind):
        raise UserError(
            path, kind, "is a scheduler of a family that is not known here: see the README for those that are"
        )
    return None


def text_to_image(index: Mapping[str, Any]) -> str | None:
    """Why a pipeline that makes images of text cannot be distilled, by its model_index.json; None: it is none."""
    name = str(index.get("_class_name"))
    if "text_encoder" in index or "tokenizer" in index or name.startswith(_TEXT):
        return f"{name} makes images of text, which is not supported yet"
    return None


def _numbers(path: Path, values: Mapping[str, Any], names: tuple[str, ...]) -> list[float]:
    """Numbers of a configuration that must be above 0."""
    for name in names:
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{path}: {name}", value, "must be a number above 0")
    return [float(values[name]) for name in names]


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

    First the configurations, by which images of text are refused, then the network's weights of that ending.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(name, None, "no such file or folder, and no hub id (OWNER/NAME)")
    from huggingface_hub import errors, snapshot_download

    at, texts = f"{name}, revision {revision}" if revision else name, ["*.json", "README.md"]
    names = [f"{place}{WEIGHTS}{part}.{weights}" for place in ("", "unet/") for part in ("", "-*-of-*")]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=texts))
        if (index := folder / "model_index.json").is_file() and (why := text_to_image(read_json(index, {}))):
            raise UserError(at, None, why)
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*texts, *names]))
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
