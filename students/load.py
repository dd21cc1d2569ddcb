"""Reading a student from a stock ConsistencyModelPipeline folder."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler

from fewstep.errors import UserError
from fewstep.files import read_json
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.grid import StepGrid
from fewstep.students.record import read_chosen
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


def load_student(path: str | Path, device: str | torch.device = "cpu") -> ConsistencyModel:
    """A consistency model from a folder that stock diffusers loads too, or of a run with one student.

    It is in evaluation mode.

    Raises UserError for a folder that is no ConsistencyModelPipeline with safetensors weights,
    or whose fewstep.json is damaged.
    """
    folder = student_folder(Path(path).expanduser())
    if not (folder / "model_index.json").exists():
        raise UserError(folder, None, "is no student: it has no model_index.json; give a run's student folder")
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict) or index.get("_class_name") != "ConsistencyModelPipeline":
        raise UserError(folder, None, "is no student: model_index.json names no ConsistencyModelPipeline")
    unet = load_unet(str(folder), "student")
    config = load_scheduler(str(folder), CMStochasticIterativeScheduler, "student").config
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
    return model.to(device).eval().requires_grad_(False)
