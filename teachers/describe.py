"""What a model's folder holds, read from its configurations and the header of its weights alone: no torch, no weights.

Whether and how it can be distilled is decided by the rules that loading and conversion have.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fewstep.errors import UserError, first_line, unreadable
from fewstep.files import read_json, safetensors_header

FOLDED = ("v_prediction", "edm")
"""Scalings under which a student computes what its teacher does, but for the time embedding."""
REGRESSED = ("epsilon", "sample", "flow_matching")
"""Scalings from which a student starts with the teacher's weights and is regressed onto its denoiser."""
_PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TEXT = ("StableDiffusion", "Flux", "PixArt", "Kandinsky", "IFPipeline", "TextToImage", "LatentConsistency")


def describe(folder: Path) -> dict[str, Any]:
    """What `fewstep inspect FOLDER` says, as JSON. UserError: it is no model's folder, or damaged.

    {"family", "pipeline", "network", "prediction", "schedule", "sigma_min", "sigma_max", "parameters", "bytes",
    "shape", "num_classes", "learned_variance", "time_embedding", "licence", "route", "why_not"}; None is what is not
    known or not there. `route` is "fold" or "regress", None where it cannot be distilled, which `why_not` tells.
    """
    index_path, own_path = folder / "model_index.json", folder / "fewstep.json"
    if not index_path.is_file() and not (folder / "unet" / "config.json").is_file():
        missing = "holds no model: it has neither model_index.json nor unet/config.json"
        raise UserError(folder, None, missing if folder.is_dir() else "no such folder")
    index = read_json(index_path, {}) if index_path.is_file() else {}
    pipeline = index.get("_class_name")
    found: dict[str, Any] = {"source": str(folder), "family": None, "pipeline": pipeline}
    network = folder / "unet" / "config.json"
    unet = read_json(network, {}) if network.is_file() else {}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    noise = read_json(scheduler, {}) if scheduler.is_file() else {}
    found |= {"network": unet.get("_class_name")}
    found |= {"prediction": None, "schedule": None, "sigma_min": None, "sigma_max": None}
    if pipeline == "ConsistencyModelPipeline":
        ends = {"sigma_min": noise.get("sigma_min"), "sigma_max": noise.get("sigma_max")}
        found |= {"family": "consistency model", "prediction": "consistency"} | ends
    elif own_path.is_file() and pipeline is None:
        own = read_json(own_path, {"scaling": {"name": str}, "sigma_min": float, "sigma_max": float})
        name = own["scaling"]["name"]
        found |= {"family": {"edm": "EDM", "ve": "VE", "flow_matching": "flow matching"}.get(name, name)}
        found |= {"prediction": name, "sigma_min": own["sigma_min"], "sigma_max": own["sigma_max"]}
    elif "num_train_timesteps" in noise and "sigma_max" not in noise:
        found |= {"family": "DDPM", "prediction": noise.get("prediction_type", "epsilon")} | _schedule(noise, scheduler)
    elif "sigma_max" in noise:
        found |= {"family": "VE", "prediction": "ve", "schedule": noise.get("_class_name")}
        found |= {"sigma_min": noise.get("sigma_min"), "sigma_max": noise["sigma_max"]}
    sides = unet.get("sample_size")
    size = [sides, sides] if isinstance(sides, int) else sides
    channels, made = unet.get("in_channels"), unet.get("out_channels")
    classes = unet.get("num_class_embeds")
    found |= {
        **_weights(folder / "unet"),
        "shape": [channels, *size] if isinstance(size, list) and channels else None,
        "num_classes": classes,
        "learned_variance": bool(channels and made == 2 * channels),
        "time_embedding": unet.get("time_embedding_type", "positional") if unet else None,
        "licence": _licence(folder),
    }
    why_not = _text_to_image(index) or refusal(unet, found["prediction"], conditional=is_conditional(unet))
    if why_not is None and found["parameters"] is None:
        pickled = any(path.suffix in (".bin", ".pt", ".ckpt") for path in (folder / "unet").glob("*"))
        save = "its weights are a pickle, which can run code: save them as safetensors"
        why_not = save if pickled else "its unet/ has no safetensors weights"
    route = None if why_not else "fold" if found["prediction"] in FOLDED else "regress"
    return found | {"route": route, "why_not": why_not}


def fetched(name: str, revision: str | None = None) -> Path:
    """The folder that a hub id's model is cached in; it is downloaded where it is not. UserError: it cannot be had."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(name, None, "no such file or folder, and no hub id (OWNER/NAME)")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "README.md", "unet/*.safetensors"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # of the hub, its cache and the network: each version has its own
        why = f"no such folder, and not to be had from the hub ({first_line(error)})"
        raise UserError(name, revision, why) from None


def refusal(unet: Mapping[str, Any], prediction: str | None, *, conditional: bool) -> str | None:
    """Why no student can be made of a network under a scaling, by its configuration; None where one can."""
    channels = unet.get("in_channels")
    if unet.get("_class_name") != "UNet2DModel":
        return f"its network is {unet.get('_class_name') or 'no UNet'}, not UNet2DModel"
    if prediction == "consistency":
        return "it is a student already: measure it, or export it"
    if prediction not in (*FOLDED, *REGRESSED):
        return f"no student can be made of {prediction}; of these it can: {', '.join((*FOLDED, *REGRESSED))}"
    if conditional:
        return "it is class-conditional; only an unconditional teacher can be distilled"
    if unet.get("time_embedding_type", "positional") != "positional":
        return f"its time embedding is {unet['time_embedding_type']}; the stock consistency pipeline takes positional"
    if unet.get("out_channels") not in (channels, 2 * (channels or 0)) or unet.get("center_input_sample"):
        return "a student needs as many output channels as input channels and center_input_sample = false"
    if not isinstance(unet.get("sample_size"), int):
        return "a student needs square images (an int sample_size)"
    return None


def is_conditional(unet: Mapping[str, Any]) -> bool:
    """Whether a network takes labels, by its configuration."""
    return any(unet.get(key) is not None for key in ("num_class_embeds", "class_embed_type"))


def _text_to_image(index: Mapping[str, Any]) -> str | None:
    name = str(index.get("_class_name"))
    if "text_encoder" in index or "tokenizer" in index or name.startswith(_TEXT):
        return f"{name} makes images of text, which is not supported yet"
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


def _weights(folder: Path) -> dict[str, Any]:
    """{"parameters", "bytes", "precision"} by the headers of a network's files; None each where there are none."""
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        return dict.fromkeys(("parameters", "bytes", "precision"))
    parameters, kinds = 0, set[str]()
    for path in files:
        with unreadable(path, "is no safetensors file"):
            tensors = [value for name, value in safetensors_header(path).items() if name != "__metadata__"]
            parameters += sum(math.prod(tensor["shape"]) for tensor in tensors)
            kinds |= {tensor["dtype"] for tensor in tensors}
    names = ", ".join(sorted(_PRECISIONS[kind] for kind in kinds if kind in _PRECISIONS))
    return {"parameters": parameters, "bytes": sum(path.stat().st_size for path in files), "precision": names or None}


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
