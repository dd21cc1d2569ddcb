"""What a model's folder holds, read from its configurations and the header of its weights alone: no torch, no weights.

Whether and how it can be distilled is decided by the rules that loading and conversion have.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fewstep.errors import unreadable
from fewstep.files import safetensors_header
from fewstep.teachers.folder import ModelFolder, model_folder, own_scaling, text_to_image

FAMILIES = {"edm": "EDM", "ve": "VE", "flow_matching": "flow matching"}
"""Of scalings that are no DDPM's, for people."""
FOLDED = ("v_prediction", "edm")
"""Scalings under which a student computes what its teacher does, but for the time embedding."""
REGRESSED = ("epsilon", "sample", "flow_matching", "ve")
"""Scalings from which a student starts with the teacher's weights and is regressed onto its denoiser."""
LONGEST_SIDE = 4096  # pixels
PICKLED = "its weights are a pickle, which can run code: make safetensors of it with fewstep convert"
COST = "trajectories.number * trajectories.steps evaluations once, and 3 an image of the student's training (cmt)"
_PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def describe(folder: Path) -> dict[str, Any]:
    """What `fewstep inspect FOLDER` says, as JSON. UserError: it is no model's folder, or damaged.

    {"family", "pipeline", "network", "prediction", "schedule", "sigma_min", "sigma_max", "parameters", "bytes",
    "precision", "gflop", "shape", "num_classes", "null_class", "learned_variance", "time_embedding", "licence",
    "route", "cost", "why_not"}; None is what is not known or not there. `gflop`: of one evaluation of one image.
    `route` is "fold" or "regress", None where it cannot be distilled, which `why_not` tells.
    """
    model = model_folder(folder)
    pipeline, noise = model.index.get("_class_name"), model.noise
    unet = model.unet
    found: dict[str, Any] = {"source": str(folder), "family": None, "pipeline": pipeline}
    found |= {"network": unet.get("_class_name")}
    found |= {"prediction": None, "schedule": None, "sigma_min": None, "sigma_max": None}
    if pipeline == "ConsistencyModelPipeline":
        ends = {"sigma_min": noise.get("sigma_min"), "sigma_max": noise.get("sigma_max")}
        found |= {"family": "consistency model", "prediction": "consistency"} | ends
    elif (own := own_scaling(model)) is not None:
        name, schedule = own[0]["name"], noise.get("_class_name")
        found |= {"family": FAMILIES.get(name, name), "prediction": name, "schedule": schedule}
        found |= {"sigma_min": own[1], "sigma_max": own[2]}
    elif "num_train_timesteps" in noise:
        where = model.scheduler / "scheduler_config.json"
        found |= {"family": "DDPM", "prediction": noise.get("prediction_type", "epsilon")} | _schedule(noise, where)
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
    }
    why_not = text_to_image(model.index) or refusal(unet, found["prediction"])
    if why_not is None and found["parameters"] is None:
        why_not = PICKLED if model.pickles else "it has no safetensors weights"
    route = None if why_not else "fold" if found["prediction"] in FOLDED else "regress"
    return found | {"route": route, "cost": COST if route else None, "why_not": why_not}


def refusal(unet: Mapping[str, Any], prediction: str | None) -> str | None:
    """Why no student can be made of a network under a scaling, by its configuration; None where one can."""
    channels, size = unet.get("in_channels"), unet.get("sample_size")
    if unet.get("_class_name") != "UNet2DModel":
        return f"its network is {unet.get('_class_name') or 'no UNet'}, not UNet2DModel"
    if prediction == "consistency":
        return "it is a student already: measure it, or export it"
    if prediction is None:
        return "it has no scheduler's configuration, which says what its network predicts"
    if prediction not in (*FOLDED, *REGRESSED):
        return f"no student can be made of {prediction}; of these it can: {', '.join((*FOLDED, *REGRESSED))}"
    if unet.get("class_embed_type") is not None:
        return (
            f"its classes are embedded as {unet['class_embed_type']}; only a table of them (num_class_embeds) is read"
        )
    rows = unet.get("num_class_embeds")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        return f"its number of classes is {rows!r}"
    times = unet.get("time_embedding_type", "positional")
    if times != "positional" and (times != "fourier" or prediction != "ve"):
        return f"its time embedding is {times}; positional is needed, or fourier in a network of the VE family"
    if unet.get("out_channels") not in (channels, 2 * (channels or 0)):
        return "it needs as many output channels as input channels, or twice as many with a learned variance"
    if unet.get("center_input_sample") and prediction != "ve":
        return "it centres its input (center_input_sample), which is known of the VE family alone"
    sides = [size] if isinstance(size, int) else size if isinstance(size, list | tuple) else []
    if not all(isinstance(side, int) and 1 <= side <= LONGEST_SIDE for side in sides) or len({*sides}) != 1:
        return f"a student makes square images of up to {LONGEST_SIDE:,} pixels a side (sample_size)"
    return None


def _schedule(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The name of a DDPM schedule with its number of steps, and its first and last finite noise level."""
    count, kind = config["num_train_timesteps"], config.get("beta_schedule", "linear")
    with unreadable(where, "its schedule cannot be used"):
        betas = _betas(config)
        kept = np.cumprod(1 - betas)
        if config.get("rescale_betas_zero_snr"):
            roots = np.sqrt(kept)
            kept = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        with np.errstate(divide="ignore"):
            sigmas = np.sqrt((1 - kept) / kept)
        sigmas = sigmas[np.isfinite(sigmas)]
        ends = float(sigmas[0]), float(sigmas[-1])
    name = "trained_betas" if config.get("trained_betas") is not None else kind
    snr = ", zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    return {"schedule": f"{name}, {count:,} steps{snr}", "sigma_min": ends[0], "sigma_max": ends[1]}


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    """float64 [T], as diffusers' DDPMScheduler has them (in float32)."""
    count, start, end = config["num_train_timesteps"], config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    if kind == "linear":
        return np.linspace(start, end, count)
    if kind == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    if kind == "sigmoid":
        return (end - start) / (1 + np.exp(-np.linspace(-6, 6, count))) + start
    if kind == "squaredcos_cap_v2":
        kept = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1 - kept[1:] / kept[:-1], 0.999)
    raise ValueError(f"beta_schedule {kind!r}")


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
