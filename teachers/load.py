"""Reading and writing a teacher: the folder of a diffusers model, or one whose fewstep.json has its scaling."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from fewstep.errors import UserError, unreadable
from fewstep.files import write_json
from fewstep.teachers.folder import OWN, ModelFolder, located, model_folder, own_scaling, text_to_image
from fewstep.teachers.interfaces import Space
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import SCALINGS, VE, Discrete, Scaling, scaling_from_json, scaling_to_json
from fewstep.teachers.schedule import vp_table
from fewstep.teachers.stock import load_scheduler, load_unet

PREDICTIONS = [name for name, kind in SCALINGS.items() if issubclass(kind, Discrete)]
"""What the network of a DDPM predicts, by diffusers' names."""


def save_teacher(model: Preconditioned, scheduler: DDPMScheduler | None, folder: Path) -> None:
    """Write a stock DDPMPipeline folder (safetensors), or unet/ and fewstep.json where it has no DDPM schedule.

    A class-conditional one, which no DDPMPipeline runs, has unet/, scheduler/ and fewstep.json.
    """
    assert isinstance(model.network, UNet2DModel)
    conditional = model.space.num_classes is not None
    if scheduler is not None and not conditional:
        DDPMPipeline(unet=model.network, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
        return
    model.network.save_pretrained(folder / "unet", safe_serialization=True)
    own: dict[str, Any] = {"null_class": model.space.null_class} if conditional else {}
    if scheduler is None:
        own |= {"scaling": scaling_to_json(model.scaling)}
        own |= {"sigma_min": model.space.sigma_min, "sigma_max": model.space.sigma_max}
    else:
        scheduler.save_pretrained(folder / "scheduler")
    write_json(folder / OWN, own)


def load_teacher(path: str | Path, device: str | torch.device = "cpu", **options: Any) -> Preconditioned:  # noqa: ANN401
    """`read_teacher`'s model on a device, frozen and in evaluation mode; `options` are that function's."""
    return read_teacher(path, **options)[0].to(device).eval().requires_grad_(False)


def read_teacher(
    path: str | Path, *, revision: str | None = None, null_class: bool = False
) -> tuple[Preconditioned, DDPMScheduler | None]:
    """A teacher from a diffusers folder or hub id, or from a folder with unet/ and fewstep.json.

    The scheduler decides the family: that of a DDPM, or of EDM, VE or flow matching, of which none is returned; so does
    fewstep.json, {"scaling": see `fewstep.teachers.scaling`, "sigma_min", "sigma_max", "null_class"}. `null_class`: the
    last row of the network's classes means none, as fewstep.json says where there is one; `revision`: of a hub id.
    Raises UserError for what is no UNet2DModel with safetensors weights and a family that is known.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() and (
        folder.is_absolute() or str(path).startswith(("./", "../", "~")) or str(path).count("/") != 1
    ):
        raise UserError(path, None, "no such folder; give that of a diffusers model, or a hub id (OWNER/NAME)")
    model = model_folder(located(str(path), revision, "teacher.revision"))
    _check(model)
    own = own_scaling(model)
    unet = load_unet(model, "teacher")
    null = null_class if model.null_class is None else model.null_class
    if null and (unet.config["num_class_embeds"] or 0) < 2:
        raise UserError("teacher.null_class", True, f"{path} has no classes of which one could mean none")
    if own is not None:
        return _own_scaled(unet, *own, null_class=null), None
    scheduler = load_scheduler(model, DDPMScheduler, "teacher")
    return ddpm_model(unet, scheduler, path, null_class=null), scheduler


def ddpm_model(
    unet: UNet2DModel, scheduler: DDPMScheduler, where: object = "prediction_type", *, null_class: bool = False
) -> Preconditioned:
    """A network with the DDPM schedule it was trained under; UserError, naming `where`, for one that is not known."""
    config = scheduler.config
    if config["prediction_type"] not in PREDICTIONS:
        raise UserError(f"{where}: prediction_type", config["prediction_type"], f"use one of {', '.join(PREDICTIONS)}")
    with unreadable(where, "its schedule cannot be used"):
        table = vp_table(scheduler.alphas_cumprod)
        finite = table[scheduler.alphas_cumprod > 0]
        limit = config["clip_sample_range"]
        space = Space(
            **_of_network(unet, null_class=null_class),
            sigma_min=float(finite[0]),
            sigma_max=float(finite[-1]),
            table=table,
            clamp=(-limit, limit) if config["clip_sample"] else None,
        )
        return Preconditioned(unet, SCALINGS[config["prediction_type"]](table), space)


def own_model(unet: UNet2DModel, scaling: Scaling, ends: tuple[float, float], *, null_class: bool) -> Preconditioned:
    """A network with a scaling that needs no schedule, for noise levels between `ends`."""
    space = Space(**_of_network(unet, null_class=null_class), sigma_min=ends[0], sigma_max=ends[1])
    return Preconditioned(unet, scaling, space)


def _of_network(unet: UNet2DModel, *, null_class: bool) -> dict[str, Any]:
    """What of a space a network's configuration says."""
    size, rows = unet.config["sample_size"], unet.config.get("num_class_embeds")
    height, width = (size, size) if isinstance(size, int) else size
    classes = None if rows is None else rows - null_class
    return {"shape": (unet.config["in_channels"], height, width), "num_classes": classes, "null_class": null_class}


def _own_scaled(
    unet: UNet2DModel, value: dict[str, Any], low: float, high: float, path: Path, *, null_class: bool
) -> Preconditioned:
    scaling = scaling_from_json(value, path)
    if unet.config["center_input_sample"] and isinstance(scaling, VE) and scaling.unit == 0.5:
        unet.register_to_config(center_input_sample=False)  # 2y - 1 of its y = (x + 1)/2 is the x that it is given
    return own_model(unet, scaling, (low, high), null_class=null_class)


def _check(model: ModelFolder) -> None:
    """UserError for another network than a UNet2DModel, and where there are no weights, or only a pickle."""
    if (why := text_to_image(model.index)) is not None:
        raise UserError(model.path, None, why)
    named = model.index.get("unet")
    kind = model.unet.get("_class_name", "UNet2DModel")
    if (model.index and (not isinstance(named, list) or named[-1:] != ["UNet2DModel"])) or kind != "UNet2DModel":
        raise UserError(model.path, None, "holds no UNet2DModel, which a teacher's network is")
    if not model.weights:
        missing = model.network / "diffusion_pytorch_model.safetensors"
        remedy = (
            "its weights exist only as a pickle, which can run code when read: fewstep convert makes safetensors of it"
            if model.pickles
            else "no such file"
        )
        raise UserError(missing, None, remedy)
