"""Reading and writing a teacher as a folder that the stock DDPMPipeline loads."""

import json
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from fewstep.errors import UserError
from fewstep.teachers.denoiser import VPDenoiser


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
    source = str(folder if folder.is_dir() else path)
    try:
        unet = UNet2DModel.from_pretrained(source, subfolder="unet", use_safetensors=True)
        scheduler = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise UserError(path, None, f"cannot be loaded as a DDPM teacher ({_first_line(error)})") from None
    if unet.config["class_embed_type"] is not None or unet.config["num_class_embeds"] is not None:
        raise UserError(path, None, "is class-conditional; only unconditional teachers can be loaded")
    unet.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return VPDenoiser(unet, scheduler)


def _check_folder(folder: Path) -> None:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(folder, None, "has no model_index.json; give the folder of a diffusers DDPMPipeline") from None
    except ValueError:
        raise UserError(folder / "model_index.json", None, "is not valid JSON") from None
    unet = index.get("unet", [None, None]) if isinstance(index, dict) else None
    if not isinstance(unet, list) or unet[-1] != "UNet2DModel":
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
