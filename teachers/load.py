"""Reading and writing a teacher: a stock DDPMPipeline folder, or one whose fewstep.json has its scaling."""

from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from fewstep.errors import UserError, unreadable
from fewstep.files import read_json, write_json
from fewstep.teachers.interfaces import Space
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import SCALINGS, Discrete, scaling_from_json, scaling_to_json
from fewstep.teachers.schedule import vp_table
from fewstep.teachers.stock import load_scheduler, load_unet

SCALING_FILE = "fewstep.json"
PREDICTIONS = [name for name, kind in SCALINGS.items() if issubclass(kind, Discrete)]
"""What the network of a DDPM predicts, by diffusers' names."""


def save_teacher(model: Preconditioned, scheduler: DDPMScheduler | None, folder: Path) -> None:
    """Write a stock DDPMPipeline folder (safetensors), or unet/ and fewstep.json where it has no DDPM schedule."""
    assert isinstance(model.network, UNet2DModel)
    if scheduler is not None:
        DDPMPipeline(unet=model.network, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
        return
    model.network.save_pretrained(folder / "unet", safe_serialization=True)
    ends = {"sigma_min": model.space.sigma_min, "sigma_max": model.space.sigma_max}
    write_json(folder / SCALING_FILE, {"scaling": scaling_to_json(model.scaling)} | ends)


def load_teacher(path: str | Path, device: str | torch.device = "cpu") -> Preconditioned:
    """`read_teacher`'s model on a device, frozen and in evaluation mode."""
    return read_teacher(path)[0].to(device).eval().requires_grad_(False)


def read_teacher(path: str | Path) -> tuple[Preconditioned, DDPMScheduler | None]:
    """A teacher from a diffusers DDPM folder or hub id, or from a folder with unet/ and fewstep.json.

    fewstep.json is {"scaling": see `fewstep.teachers.scaling`, "sigma_min", "sigma_max"}; there is no scheduler then.
    Raises UserError for what is no unconditional UNet2DModel with safetensors weights and a scaling that is known.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_folder(folder)
    elif folder.is_absolute() or str(path).startswith(("./", "../", "~")) or str(path).count("/") != 1:
        raise UserError(path, None, "no such folder; give a diffusers DDPM folder (with model_index.json) or a hub id")
    source = str(folder if folder.is_dir() else path)
    unet = load_unet(source, "teacher")
    if (folder / SCALING_FILE).is_file():
        return _own_scaled(unet, folder / SCALING_FILE), None
    scheduler = load_scheduler(source, DDPMScheduler, "teacher")
    return ddpm_model(unet, scheduler, path), scheduler


def ddpm_model(unet: UNet2DModel, scheduler: DDPMScheduler, where: object = "prediction_type") -> Preconditioned:
    """A network with the DDPM schedule it was trained under; UserError, naming `where`, for one that is not known."""
    config = scheduler.config
    if config["prediction_type"] not in PREDICTIONS:
        raise UserError(f"{where}: prediction_type", config["prediction_type"], f"use one of {', '.join(PREDICTIONS)}")
    with unreadable(where, "its schedule cannot be used"):
        table = vp_table(scheduler.alphas_cumprod)
        finite = table[scheduler.alphas_cumprod > 0]
        limit = config["clip_sample_range"]
        space = Space(
            shape=_shape(unet),
            sigma_min=float(finite[0]),
            sigma_max=float(finite[-1]),
            table=table,
            clamp=(-limit, limit) if config["clip_sample"] else None,
        )
        return Preconditioned(unet, SCALINGS[config["prediction_type"]](table), space)


def _shape(unet: UNet2DModel) -> tuple[int, int, int]:
    size = unet.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return unet.config["in_channels"], height, width


def _own_scaled(unet: UNet2DModel, path: Path) -> Preconditioned:
    value = read_json(path, {"scaling": {}, "sigma_min": float, "sigma_max": float})
    if not 0 < value["sigma_min"] < value["sigma_max"]:
        raise UserError(path, (value["sigma_min"], value["sigma_max"]), "must be 0 < sigma_min < sigma_max")
    space = Space(shape=_shape(unet), sigma_min=value["sigma_min"], sigma_max=value["sigma_max"])
    return Preconditioned(unet, scaling_from_json(value["scaling"], path), space)


def _check_folder(folder: Path) -> None:
    if not (folder / SCALING_FILE).is_file():
        if not (folder / "model_index.json").is_file():
            raise UserError(folder, None, "has no model_index.json; give the folder of a diffusers DDPMPipeline")
        index = read_json(folder / "model_index.json")
        unet = index.get("unet") if isinstance(index, dict) else None
        if not isinstance(unet, list) or unet[-1:] != ["UNet2DModel"]:
            raise UserError(folder, None, "holds no UNet2DModel; give the folder of a diffusers DDPMPipeline")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.exists():
        pickled = any((folder / "unet").glob("*.bin"))
        remedy = (
            "its weights exist only as a pickle, which can run code when read; save it again with "
            "save_pretrained(safe_serialization=True)"
            if pickled
            else "no such file"
        )
        raise UserError(weights, None, remedy)
