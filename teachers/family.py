"""The family of a model, by its scheduler or its fewstep.json: what its network predicts, at which noise levels.

No torch. UserError is raised for a family that is not supported, and for numbers that cannot be.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.errors import UserError, unreadable
from fewstep.files import check_form, read_json
from fewstep.teachers.fields import DDPM_DEFAULTS, FAMILIES, SCHEDULERS, check_old
from fewstep.teachers.folder import FLOW_ENDS, OWN, ModelFolder

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What the network of a DDPM predicts, by diffusers' names."""
SCALING_NUMBERS = {
    **dict.fromkeys(PREDICTIONS, ("table",)),
    "edm": ("sigma_data",),
    "ve": ("unit",),
    "flow_matching": ("num_train_timesteps",),
    "consistency": ("sigma_min", "sigma_data"),
}
"""The numbers of each scaling in `fewstep.teachers.scaling`, as its JSON form names them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a network predicts (a name of a scaling), and the first and last finite noise level it is trained on.

    sigma_min, sigma_max: NaN for a student whose scheduler does not state them. scaling: the scaling's JSON, from the
    file `where`; None: that of a DDPM, whose schedule decides.
    """

    prediction: str
    schedule: str | None
    sigma_min: float
    sigma_max: float
    where: Path
    scaling: Mapping[str, Any] | None = None


def family_of(model: ModelFolder) -> Family | None:
    """Return the family of a model; None: it has no scheduler and no scaling in its fewstep.json."""
    noise, where = model.noise, model.scheduler / "scheduler_config.json"
    if "scaling" in model.own:
        return _own(model)
    if not noise:
        return None
    kind = noise.get("_class_name", "DDPMScheduler")
    family = SCHEDULERS.get(kind) if isinstance(kind, str) else None
    if model.index.get("_class_name") == "ConsistencyModelPipeline" or family == "student":
        ends = (noise.get("sigma_min", math.nan), noise.get("sigma_max", math.nan))
        return Family(prediction="consistency", schedule=None, sigma_min=ends[0], sigma_max=ends[1], where=where)
    if family is None:
        remedy = "is a scheduler of a family that is not known here: see the README for those that are"
        raise UserError(where, kind, remedy)
    check_old(where, noise)
    FAMILIES[family].check(where, noise)
    if family == "ddpm":
        name, low, high = _schedule(ddpm_config(model), where)
        prediction = ddpm_config(model)["prediction_type"]
        return Family(prediction=prediction, schedule=name, sigma_min=low, sigma_max=high, where=where)
    scaling, low, high = _continuous(family, model, where)
    _check_ends(where, low, high)
    return Family(
        prediction=scaling["name"], schedule=kind, sigma_min=low, sigma_max=high, where=where, scaling=scaling
    )


def _own(model: ModelFolder) -> Family:
    """Read the scaling of a fewstep.json."""
    where = model.path / OWN
    value = read_json(where, {"scaling": {"name": str}, "sigma_min": float, "sigma_max": float})
    scaling, low, high = value["scaling"], value["sigma_min"], value["sigma_max"]
    check_scaling(where, scaling)
    _check_ends(where, low, high)
    schedule = model.noise.get("_class_name")
    return Family(
        prediction=scaling["name"], schedule=schedule, sigma_min=low, sigma_max=high, where=where, scaling=scaling
    )


def _continuous(family: str, model: ModelFolder, where: Path) -> tuple[dict[str, Any], float, float]:
    """Return the scaling's JSON and the noise levels of a scheduler without a DDPM's schedule."""
    noise = {**model.noise}
    if family == "edm":
        values = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0} | noise
        sigma_data, low, high = (_above_zero(where, values, key) for key in ("sigma_data", "sigma_min", "sigma_max"))
        return {"name": "edm", "sigma_data": sigma_data}, low, high
    if family == "flow_matching":
        steps = _above_zero(where, {"num_train_timesteps": 1000} | noise, "num_train_timesteps")
        return {"name": "flow_matching", "num_train_timesteps": steps}, *FLOW_ENDS
    # ve: of images in [0, 1], which is half of our range
    values = {"sigma_min": 0.01, "sigma_max": 1348.0} | noise
    low, high = (_above_zero(where, values, key) for key in ("sigma_min", "sigma_max"))
    if not model.unet.get("center_input_sample"):
        remedy = "is of images in [0, 1], which a network of its family centres: center_input_sample must be true"
        raise UserError(where, "ScoreSdeVeScheduler", remedy)
    return {"name": "ve", "unit": 0.5}, 2 * low, 2 * high


def check_scaling(where: object, value: Any) -> None:  # noqa: ANN401 - JSON
    """Raise UserError, naming the file `where`, for what is not the JSON form of a scaling."""
    check_form(where, value, {"name": str})
    name, numbers = value["name"], {key: number for key, number in value.items() if key != "name"}
    if name not in SCALING_NUMBERS:
        raise UserError(f"{where}: scaling", name, f"use one of {', '.join(SCALING_NUMBERS)}")
    if unknown := sorted(set(numbers) - set(SCALING_NUMBERS[name])):
        raise UserError(f"{where}: scaling.{unknown[0]}", None, f"is no number of {name}")
    check_form(f"{where}: scaling", numbers, {key: [float] if key == "table" else float for key in numbers})
    if name in PREDICTIONS:
        table = np.asarray(numbers.get("table", []), np.float64)
        if len(table) < 2 or not (np.diff(table) > 0).all() or table[0] <= 0:
            raise UserError(f"{where}: scaling.table", None, "must be two or more ascending noise levels above 0")
    elif bad := [key for key, number in numbers.items() if number <= 0]:
        raise UserError(f"{where}: scaling.{bad[0]}", numbers[bad[0]], "must be greater than 0")


def ddpm_config(model: ModelFolder) -> dict[str, Any]:
    """Return the configuration of a DDPM's scheduler as its class reads it, for a DDPMScheduler of diffusers.

    It has the defaults of the class where they differ from DDPMScheduler's, and a `prediction_type`, which diffusers
    before 0.10 called `predict_epsilon`.
    """
    where, noise = model.scheduler / "scheduler_config.json", dict(model.noise)
    config = DDPM_DEFAULTS.get(noise.get("_class_name", ""), {}) | noise
    old = config.pop("predict_epsilon", None)
    if not isinstance(old, bool | None):
        raise UserError(f"{where}: predict_epsilon", old, "must be true or false")
    meant = "sample" if old is False else "epsilon"
    prediction = config.setdefault("prediction_type", meant)
    if prediction not in PREDICTIONS:
        raise UserError(f"{where}: prediction_type", prediction, f"use one of {', '.join(PREDICTIONS)}")
    if old is not None and prediction != meant:
        remedy = f"contradicts prediction_type {prediction!r}; remove the one that is wrong"
        raise UserError(f"{where}: predict_epsilon", old, remedy)
    for key in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
        if not isinstance(config.get(key, False), bool):
            raise UserError(f"{where}: {key}", config[key], "must be true or false")
    if config.get("clip_sample", True):
        _above_zero(where, {"clip_sample_range": 1.0} | config, "clip_sample_range")
    if config.get("thresholding"):
        values = {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0} | config
        if _above_zero(where, values, "dynamic_thresholding_ratio") > 1:
            raise UserError(f"{where}: dynamic_thresholding_ratio", values["dynamic_thresholding_ratio"], "exceeds 1")
        if _above_zero(where, values, "sample_max_value") < 1:
            raise UserError(f"{where}: sample_max_value", values["sample_max_value"], "must be at least 1")
    return config


def _schedule(config: Mapping[str, Any], where: Path) -> tuple[str, float, float]:
    """Return the name of a DDPM schedule with its number of steps, and its first and last finite noise level."""
    with unreadable(where, "its schedule cannot be used"):
        betas = _betas(config)
        if betas.ndim != 1 or len(betas) < 2 or not (betas > 0).all() or not (betas[:-1] < 1).all() or betas[-1] > 1:
            raise ValueError("it needs two or more betas between 0 and 1")
        kept = np.cumprod(1 - betas)
        if config.get("rescale_betas_zero_snr"):
            roots = np.sqrt(kept)
            kept = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        with np.errstate(divide="ignore"):
            sigmas = np.sqrt((1 - kept) / kept)
        sigmas = sigmas[np.isfinite(sigmas)]
    name = "trained_betas" if config.get("trained_betas") is not None else config.get("beta_schedule", "linear")
    snr = ", zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    return f"{name}, {len(betas):,} steps{snr}", float(sigmas[0]), float(sigmas[-1])


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    """Return float64 [T], which diffusers' DDPMScheduler has in float32."""
    count, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
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


def _check_ends(where: Path, low: float, high: float) -> None:
    if not 0 < low < high:
        raise UserError(where, (low, high), "must be 0 < sigma_min < sigma_max")


def _above_zero(where: Path, values: Mapping[str, Any], name: str) -> float:
    """Return a number of a configuration that must be above 0."""
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{where}: {name}", value, "must be a number above 0")
    return float(value)
