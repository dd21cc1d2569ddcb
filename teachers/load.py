"""Reading and writing a teacher: the folder of a diffusers model, or one whose fewstep.json has its scaling."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from fewstep.errors import UserError, unreadable
from fewstep.files import write_json
from fewstep.teachers.family import PREDICTIONS, Family, ddpm_config, family_of
from fewstep.teachers.folder import OWN, located, model_folder
from fewstep.teachers.interfaces import Space, some_class
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.refusal import why_not
from fewstep.teachers.scaling import SCALINGS, VE, Scaling, scaling_from_json, scaling_to_json
from fewstep.teachers.schedule import vp_table
from fewstep.teachers.stock import load_scheduler, load_unet

LARGEST_TRIAL = 64  # pixels a side


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
    Raises UserError for what cannot be distilled (see `fewstep.teachers.refusal`), and for a network that cannot be
    loaded or evaluated.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() and (
        folder.is_absolute() or str(path).startswith(("./", "../", "~")) or str(path).count("/") != 1
    ):
        raise UserError(path, None, "no such folder; give that of a diffusers model, or a hub id (OWNER/NAME)")
    model = model_folder(located(str(path), revision, "teacher.revision"))
    if (why := why_not(model)) is not None:
        raise UserError(model.path, None, why)
    family = family_of(model)
    assert family is not None
    unet = load_unet(model, "teacher")
    null = null_class if model.null_class is None else model.null_class
    if null and (unet.config["num_class_embeds"] or 0) < 2:
        raise UserError("teacher.null_class", True, f"{path} has no classes of which one could mean none")
    if family.scaling is not None:
        scheduler, teacher = None, _own_scaled(unet, family, null_class=null)
    else:
        scheduler = load_scheduler(model, DDPMScheduler, "teacher", ddpm_config(model))
        teacher = ddpm_model(unet, scheduler, path, null_class=null)
    _try_once(teacher, model.path)
    return teacher, scheduler


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
            threshold=(config["dynamic_thresholding_ratio"], config["sample_max_value"])
            if config["thresholding"]
            else None,
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


def _own_scaled(unet: UNet2DModel, family: Family, *, null_class: bool) -> Preconditioned:
    scaling = scaling_from_json(family.scaling, family.where)
    if unet.config["center_input_sample"] and isinstance(scaling, VE) and scaling.unit == 0.5:
        unet.register_to_config(center_input_sample=False)  # 2y - 1 of its y = (x + 1)/2 is the x that it is given
    return own_model(unet, scaling, (family.sigma_min, family.sigma_max), null_class=null_class)


@torch.no_grad()
def _try_once(model: Preconditioned, where: Path) -> None:
    """Evaluate a model on noise, and raise UserError, naming `where`, unless that gives finite images of its shape.

    Larger images than LARGEST_TRIAL are tried at a smaller side which the network can halve as often.
    """
    channels, side, _ = model.space.shape
    assert isinstance(model.network, UNet2DModel)
    factor = 2 ** (len(model.network.config["block_out_channels"]) - 1)
    side = min(side, -(-LARGEST_TRIAL // factor) * factor)
    x = torch.randn((1, channels, side, side), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([min(max(1.0, model.space.sigma_min), model.space.sigma_max)])
    with unreadable(where, "its network cannot be evaluated on its own images"):
        estimate = model(x, sigma, some_class(model.space, 1, x.device))
    if estimate.shape != x.shape:
        made, given = ("x".join(map(str, each.shape[1:])) for each in (estimate, x))
        raise UserError(where, None, f"its network makes {made} of images of {given}")
    if not bool(estimate.isfinite().all()):
        raise UserError(where, None, "its network makes NaN or infinity of noise: its weights are damaged")
