"""What a model's folder holds, read from its configurations and the header of its weights alone: no torch, no weights.

Whether and how it can be distilled is decided by the rules that loading and conversion have.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fewstep.errors import UserError, unreadable
from fewstep.files import safetensors_header
from fewstep.teachers.family import family_of
from fewstep.teachers.fields import FAMILIES as FIELDS
from fewstep.teachers.fields import SCHEDULERS, UNET
from fewstep.teachers.folder import ModelFolder, model_folder
from fewstep.teachers.refusal import FOLDED, why_not

FAMILIES = {"edm": "EDM", "ve": "VE", "flow_matching": "flow matching", "consistency": "consistency model"}
"""The names of families for people, by the scaling; others are a DDPM's."""
COST = "trajectories.number * trajectories.steps evaluations once, and 3 an image of the student's training (cmt)"
_PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def describe(folder: Path) -> dict[str, Any]:
    """What `fewstep inspect FOLDER` says, as JSON. UserError: it is no model's folder, or damaged.

    {"family", "pipeline", "network", "prediction", "schedule", "sigma_min", "sigma_max", "parameters", "bytes",
    "precision", "gflop", "shape", "num_classes", "null_class", "learned_variance", "time_embedding", "licence",
    "ignored", "route", "cost", "why_not"}; None is what is not known or not there. `gflop`: of one evaluation of one
    image. `ignored`: fields of its configurations that neither this program nor diffusers reads. `route` is "fold" or
    "regress", None where it cannot be distilled, which `why_not` tells.
    """
    model = model_folder(folder)
    unet, reason = model.unet, why_not(model)
    found: dict[str, Any] = {"source": str(folder), "family": None, "pipeline": model.index.get("_class_name")}
    found |= {"network": unet.get("_class_name")}
    found |= dict.fromkeys(("prediction", "schedule", "sigma_min", "sigma_max"))
    with suppress(UserError):  # then it is the reason
        if (family := family_of(model)) is not None:
            found |= {"prediction": family.prediction, "schedule": family.schedule}
            ends = {"sigma_min": family.sigma_min, "sigma_max": family.sigma_max}
            found |= {key: value for key, value in ends.items() if not math.isnan(value)}
            found["family"] = FAMILIES.get(family.prediction, "DDPM")
    sides = unet.get("sample_size")
    size = [sides, sides] if isinstance(sides, int) else sides
    channels, made, rows = unet.get("in_channels"), unet.get("out_channels"), unet.get("num_class_embeds")
    null, counted = bool(model.null_class and rows), isinstance(rows, int) and not isinstance(rows, bool)
    found |= {
        **_weights(model, unet),
        "shape": [channels, *size] if isinstance(size, list) and channels else None,
        "num_classes": rows - null if rows and counted else None,
        "null_class": null,
        "learned_variance": bool(channels and made == 2 * channels),
        "time_embedding": unet.get("time_embedding_type", "positional") if unet else None,
        "licence": _licence(folder),
        "ignored": _ignored(model) or None,
    }
    route = None if reason else "fold" if found["prediction"] in FOLDED else "regress"
    return found | {"route": route, "cost": COST if route else None, "why_not": reason}


def _ignored(model: ModelFolder) -> list[str]:
    """Return the fields of a model's configurations that are read neither here nor by diffusers."""
    kind = model.noise.get("_class_name", "DDPMScheduler")
    family = SCHEDULERS.get(kind) if isinstance(kind, str) else None
    found = [("config.json", key) for key in UNET.unknown(model.unet)] if model.unet else []
    if family in FIELDS:
        found += [("scheduler_config.json", key) for key in FIELDS[family].unknown(model.noise)]
    return [f"{file}: {key}" for file, key in found]


def _weights(model: ModelFolder, unet: Mapping[str, Any]) -> dict[str, Any]:
    """{"parameters", "bytes", "precision", "gflop"} by the headers of a network's files; None each without any."""
    parameters, kinds, products = 0, set[str](), 0.0
    for path in model.weights:
        with unreadable(path, "is no safetensors file"):
            tensors = {name: value for name, value in safetensors_header(path).items() if name != "__metadata__"}
            parameters += sum(math.prod(tensor["shape"]) for tensor in tensors.values())
            kinds |= {tensor["dtype"] for tensor in tensors.values()}
            products += sum(_products(name, tensor["shape"], unet) for name, tensor in tensors.items())
    if not model.weights:
        return dict.fromkeys(("parameters", "bytes", "precision", "gflop"))
    names = ", ".join(sorted(_PRECISIONS[kind] for kind in kinds if kind in _PRECISIONS))
    size = sum(path.stat().st_size for path in model.weights)
    gflop = 2 * products / 1e9 or None
    return {"parameters": parameters, "bytes": size, "precision": names or None, "gflop": gflop}


def _products(name: str, shape: Sequence[int], unet: Mapping[str, Any]) -> float:
    """Multiplications with a tensor of a UNet2DModel in one evaluation of one image: its size times its places there.

    The products of queries and keys are left out: they have no weights.
    """
    size, blocks = unet.get("sample_size"), unet.get("block_out_channels")
    levels = len(blocks) if isinstance(blocks, list) else 1
    side = size if isinstance(size, int) else size[0] if isinstance(size, list) and size else None
    if len(shape) < 2 or not isinstance(side, int) or name.startswith(("time_", "class_")) or "time_emb_proj" in name:
        return 0.0
    part, _, rest = name.partition(".")
    level = levels - 1 if part == "mid_block" else 0
    if part in ("down_blocks", "up_blocks") and rest.partition(".")[0].isdigit():
        number = int(rest.partition(".")[0])
        level = number if part == "down_blocks" else levels - 1 - number
        level += {"downsamplers": 1, "upsamplers": -1}.get(rest.split(".")[1], 0)
    return math.prod(shape) * (side / 2**level) ** 2


def _licence(folder: Path) -> str | None:
    """What the card of a folder states."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---"):
        return None
    try:
        front = yaml.safe_load(text.split("---")[1])
    except yaml.YAMLError:
        return None
    return str(front["license"]) if isinstance(front, dict) and front.get("license") else None
