"""Writing a student as a stock ConsistencyModelPipeline folder, and the round trip that checks it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConsistencyModelPipeline

from fewstep.students.consistency import ConsistencyModel, sample_consistency
from fewstep.students.record import write_record
from fewstep.teachers.stock import quiet

ROUND_TRIP_TOLERANCE = 1e-4
"""Largest difference allowed between a pixel of ours and the stock pipeline's, of a range of 2."""


def save_student(model: ConsistencyModel, folder: Path) -> dict[int, float]:
    """Write model_index.json, unet/, scheduler/ (safetensors, float32) and fewstep.json, then check the round trip.

    Returns the largest pixel difference from the stock pipeline at 1, 2 and 4 steps (those that the grid has).
    Raises ValueError when one exceeds ROUND_TRIP_TOLERANCE: the folder must then not be used.
    """
    scheduler = model.grid.scheduler(model.sigma_min, model.sigma_max, model.scaling.sigma_data)
    assert scheduler.config["sigma_min"] == float(np.float32(scheduler.config["sigma_min"]))
    unet = model.clone().network.cpu().float().eval()
    ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder, safe_serialization=True)
    write_record(model, folder)
    return round_trip(model, folder)


def round_trip(model: ConsistencyModel, folder: Path, num: int = 4) -> dict[int, float]:
    """{steps: largest pixel difference} between our sampler and stock diffusers on `num` images in [-1, 1]."""
    ours = model.clone().to("cpu").eval()
    with quiet():
        pipeline = ConsistencyModelPipeline.from_pretrained(str(folder), use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    calls = [(steps, {"num_inference_steps": steps}, replace(model.grid, chosen={})) for steps in (1, 2, 4)]
    calls += [(steps, stock_call(model, steps), model.grid) for steps in model.grid.chosen]
    differences: dict[int, float] = {}
    for steps, call, grid in calls:
        if steps >= grid.num_train_timesteps:
            continue
        generators = [torch.Generator("cpu").manual_seed(index) for index in range(num)]
        options = {"generator": _fresh(generators), "output_type": "np", "return_dict": False}
        stock = np.asarray(pipeline(batch_size=num, **call, **options)[0])
        sigmas = grid.sigmas(steps, model.sigma_min, model.sigma_max)
        mine = sample_consistency(ours, sigmas, lambda: _draw(generators, model.space.shape))  # noqa: B023
        difference = float(np.abs(mine.permute(0, 2, 3, 1).numpy() - (stock * 2 - 1)).max())
        if not difference <= ROUND_TRIP_TOLERANCE:
            raise ValueError(
                f"{folder}: stock diffusers differs by {difference:.3g} at {steps} steps "
                f"(allowed {ROUND_TRIP_TOLERANCE}); the student was not saved"
            )
        differences[steps] = max(difference, differences.get(steps, 0.0))
    return differences


def stock_call(model: ConsistencyModel, steps: int) -> dict[str, Any]:
    """The arguments with which the stock pipeline uses the noise levels of `model.step_sigmas(steps)`."""
    if steps not in model.grid.chosen:
        return {"num_inference_steps": steps}
    return {"num_inference_steps": None, "timesteps": list(model.grid.chosen[steps])}


def _fresh(generators: list[torch.Generator]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(generator.initial_seed()) for generator in generators]


def _draw(generators: list[torch.Generator], shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
