"""Reading a student from a stock ConsistencyModelPipeline folder."""

from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler, UNet2DModel

from fewstep.errors import UserError
from fewstep.files import read_json
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.grid import StepGrid


def load_student(path: str | Path, device: str | torch.device = "cpu") -> ConsistencyModel:
    """A consistency model from a folder that stock diffusers loads too; in evaluation mode.

    Raises UserError for a folder that is no ConsistencyModelPipeline with safetensors weights.
    """
    folder = Path(path).expanduser()
    if not (folder / "model_index.json").exists():
        raise UserError(folder, None, "is no student: it has no model_index.json; give a run's student folder")
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict) or index.get("_class_name") != "ConsistencyModelPipeline":
        raise UserError(folder, None, "is no student: model_index.json names no ConsistencyModelPipeline")
    try:
        unet = UNet2DModel.from_pretrained(str(folder), subfolder="unet", use_safetensors=True)
        scheduler = CMStochasticIterativeScheduler.from_pretrained(str(folder), subfolder="scheduler")
    except (OSError, ValueError, RuntimeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(folder, None, f"cannot be loaded as a student ({first_line})") from None
    config = scheduler.config
    model = ConsistencyModel(
        unet,
        sigma_min=config["sigma_min"],
        sigma_max=config["sigma_max"],
        sigma_data=config["sigma_data"],
        grid=StepGrid(num_train_timesteps=config["num_train_timesteps"], rho=config["rho"]),
    )
    return model.to(device).eval().requires_grad_(False)
