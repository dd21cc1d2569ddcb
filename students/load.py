"""Reading a student from the folder of a stock pipeline: `READERS` is the list of those that are students."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, DDIMScheduler

from fewstep.errors import UserError, unreadable
from fewstep.files import read_json
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.ddim import OPTIONS, PREDICTIONS, DDIMStudent
from fewstep.students.grid import StepGrid
from fewstep.students.interfaces import Student
from fewstep.students.record import read_chosen
from fewstep.teachers.folder import model_folder
from fewstep.teachers.stock import load_scheduler, load_unet


def student_folder(path: Path, name: str | None = None) -> Path:
    """The folder of a student: `path` itself, or the one of that name in a run's folder.

    UserError: the run has no student of that name; or several, and no name is given.
    """
    found = sorted(folder.parent.name for folder in path.glob("students/[!.]*/model_index.json"))
    if not found and name is None:
        return path
    if name not in found and (name is not None or len(found) > 1):
        remedy = (
            f"holds the students {', '.join(found)}: name one, or give its folder" if found else "holds no students"
        )
        raise UserError(path, name, remedy)
    return path / "students" / (name or found[0])


def load_student(path: str | Path, device: str | torch.device = "cpu") -> Student:
    """A student from a folder that stock diffusers loads too, or of a run with one student.

    It is in evaluation mode.

    Raises UserError for a folder that is no pipeline of READERS with safetensors weights, or is not as a student's,
    or whose fewstep.json is damaged.
    """
    folder = student_folder(Path(path).expanduser())
    if not (folder / "model_index.json").exists():
        raise UserError(folder, None, "is no student: it has no model_index.json; give a run's student folder")
    kind = _kind(folder)
    if kind is None:
        raise UserError(folder, None, f"is no student: model_index.json names no {' or '.join(READERS)}")
    return READERS[kind](folder).to(device).eval().requires_grad_(False)


def is_student(folder: Path) -> bool:
    """Whether a stock pipeline's folder is a student's; a DDIMPipeline is one by the options of its scheduler."""
    kind, config = _kind(folder), folder / "scheduler" / "scheduler_config.json"
    return kind == "ConsistencyModelPipeline" or (
        kind == "DDIMPipeline" and config.is_file() and not _unlike(read_json(config, {}))
    )


def _kind(folder: Path) -> str | None:
    """Which of READERS a folder's pipeline is."""
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name") if isinstance(index, dict) else None
    return kind if isinstance(kind, str) and kind in READERS else None


def _consistency(folder: Path) -> ConsistencyModel:
    unet = load_unet(model_folder(folder), "student")
    config = load_scheduler(model_folder(folder), CMStochasticIterativeScheduler, "student").config
    if not isinstance(unet.config["sample_size"], int):
        raise UserError(
            f"{folder}: sample_size", unet.config["sample_size"], "a student makes square images: one number"
        )
    if not 0 < config["sigma_min"] < config["sigma_max"]:
        values = (config["sigma_min"], config["sigma_max"])
        raise UserError(f"{folder}: sigma_min, sigma_max", values, "must be 0 < sigma_min < sigma_max")
    model = ConsistencyModel(
        unet,
        sigma_min=config["sigma_min"],
        sigma_max=config["sigma_max"],
        sigma_data=config["sigma_data"],
        grid=StepGrid(num_train_timesteps=config["num_train_timesteps"], rho=config["rho"]),
    )
    model.grid = replace(model.grid, chosen=read_chosen(folder, model))
    return model


def _ddim(folder: Path) -> DDIMStudent:
    unet = load_unet(model_folder(folder), "student")
    scheduler = load_scheduler(model_folder(folder), DDIMScheduler, "student")
    if unlike := _unlike(scheduler.config):
        where, value = f"{folder}: scheduler_config.json: {unlike[0]}", scheduler.config[unlike[0]]
        raise UserError(where, value, "is not that of a student: it is sampled as any pipeline is")
    with unreadable(folder, "its schedule cannot be used"):
        return DDIMStudent(unet, scheduler)


def _unlike(config: Mapping[str, Any]) -> list[str]:
    """What of a DDIMScheduler's configuration is not as a student's is."""
    wrong = [key for key, value in OPTIONS.items() if config.get(key) != value]
    return wrong if config.get("prediction_type") in PREDICTIONS else ["prediction_type", *wrong]


READERS: dict[str, Callable[[Path], Student]] = {"ConsistencyModelPipeline": _consistency, "DDIMPipeline": _ddim}
