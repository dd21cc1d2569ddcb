"""Reading and writing a teacher as a folder that the stock DDPMPipeline loads."""

from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from fewstep.errors import UserError, unreadable
from fewstep.files import read_json
from fewstep.teachers.denoiser import PREDICTIONS, VPDenoiser
from fewstep.teachers.stock import load_parts


def save_teacher(unet: UNet2DModel, scheduler: DDPMScheduler, folder: Path) -> None:
    """Write a stock DDPMPipeline folder: model_index.json, unet/, scheduler/ (safetensors)."""
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)


def load_teacher(path: str | Path, device: str | torch.device = "cpu") -> VPDenoiser:
    """A diffusers DDPM folder, or hub id, as a frozen Denoiser in evaluation mode.

    Raises UserError for what is no unconditional UNet2DModel + DDPMScheduler pair with safetensors weights.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_folder(folder)
    elif folder.is_absolute() or str(path).startswith(("./", "../", "~")) or str(path).count("/") != 1:
        raise UserError(path, None, "no such folder; give a diffusers DDPM folder (with model_index.json) or a hub id")
    unet, scheduler = load_parts(str(folder if folder.is_dir() else path), DDPMScheduler, "teacher")
    prediction = scheduler.config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise UserError(f"{path}: prediction_type", prediction, f"use one of {', '.join(PREDICTIONS)}")
    unet.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    with unreadable(path, "its schedule cannot be used"):
        return VPDenoiser(unet, scheduler)


def _check_folder(folder: Path) -> None:
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
