"""Writing a student as the folder of a stock pipeline, and the round trip that checks it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from fewstep.students.consistency import ConsistencyModel
from fewstep.students.interfaces import Student
from fewstep.students.record import write_record
from fewstep.teachers.interfaces import NONE, Condition
from fewstep.teachers.stock import quiet

ROUND_TRIP_TOLERANCE = 1e-4
"""Largest difference allowed between a pixel of ours and the stock pipeline's, of a range of 2."""


def save_student(model: Student, folder: Path) -> dict[int, float]:
    """Write model_index.json, unet/, scheduler/ (safetensors, float32), then check the round trip.

    A consistency model has a fewstep.json too. Returns the largest pixel difference from the stock pipeline at 1, 2
    and 4 steps (those that the student has).
    Raises ValueError when one exceeds ROUND_TRIP_TOLERANCE: the folder must then not be used.
    """
    model.pipeline().save_pretrained(folder, safe_serialization=True)
    if isinstance(model, ConsistencyModel):
        write_record(model, folder)
    return round_trip(model, folder)


def round_trip(model: Student, folder: Path, num: int = 4) -> dict[int, float]:
    """{steps: largest pixel difference} between our sampler and stock diffusers on `num` images in [-1, 1]."""
    ours = model.clone().to("cpu").eval()
    with quiet():
        pipeline: Any = DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    differences: dict[int, float] = {}
    for call, planned in model.stock_calls():
        steps = planned.nfe
        generators = [torch.Generator("cpu").manual_seed(index) for index in range(num)]
        options = {"generator": _fresh(generators), "output_type": "np", "return_dict": False}
        condition = NONE
        if (classes := model.space.num_classes) is not None:
            condition = Condition(labels=torch.arange(num) % classes)
            options |= {"class_labels": condition.labels}
        stock = np.asarray(pipeline(batch_size=num, **call, **options)[0])
        mine = planned.sample(ours, lambda: _draw(generators, model.space.shape), condition)  # noqa: B023
        difference = float(np.abs(mine.permute(0, 2, 3, 1).numpy() - (stock * 2 - 1)).max())
        if not difference <= ROUND_TRIP_TOLERANCE:
            raise ValueError(
                f"{folder}: stock diffusers differs by {difference:.3g} at {steps} steps "
                f"(allowed {ROUND_TRIP_TOLERANCE}); the student was not saved"
            )
        differences[steps] = max(difference, differences.get(steps, 0.0))
    return differences


def _fresh(generators: list[torch.Generator]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(generator.initial_seed()) for generator in generators]


def _draw(generators: list[torch.Generator], shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
