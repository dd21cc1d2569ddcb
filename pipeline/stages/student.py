"""The student stage: convert the teacher, distil, choose noise levels, save and check the round trip."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import UserError
from fewstep.files import read_json, sealed, sha256_file, unsealed, write_json
from fewstep.pipeline.data.choice import choice_images
from fewstep.pipeline.stages.card import model_card
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.training.checkpoint import list_checkpoints
from fewstep.pipeline.training.loop import train
from fewstep.pipeline.training.randomness import keyed_generator
from fewstep.progress import say
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.convert import conversion_error, convert_teacher
from fewstep.students.objective import OBJECTIVES
from fewstep.students.save import save_student
from fewstep.teachers.denoiser import VPDenoiser
from fewstep.teachers.load import load_teacher


def make_student(run: RunContext, stage: Path, config_hash: str) -> dict[str, Any]:
    """Fill `stage` with a stock ConsistencyModelPipeline folder of the averaged weights and its model card."""
    config, folder = run.config.student, run.folder / "teacher"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = sha256_file(weights)
    real = choice_images(run.config.data, run.data.images)
    teacher = load_teacher(folder, run.device)
    teacher.unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    model, errors = _convert(run, teacher, config_hash)
    say(f"  the student starts within RMSE {max(errors.values()):.4f} of the teacher's denoiser")
    objective = OBJECTIVES[config.objective](model, teacher, config.doublings)
    say(f"student: distilling with {config.objective} for {config.train.kimg:g} kimg, {config.doublings} doublings")
    job = run.training_job("student", config.train, config_hash)
    average = train(objective, job, run.accelerated(config.train.precision))
    assert isinstance(average, ConsistencyModel)
    from fewstep.pipeline.stages.search import search_levels  # seconds that a resumed training does not wait

    average.grid, search = search_levels(run, average, real)
    round_trip = save_student(average, stage)
    checked = ", ".join(str(steps) for steps in round_trip)
    say(f"  stock diffusers gives the same images to {max(round_trip.values()):.1e} at {checked} steps")
    assert sha256_file(weights) == before, "the teacher's weights changed on disk"
    facts = {
        "conversion_rmse": errors,
        "search": search,
        "round_trip": {str(steps): difference for steps, difference in round_trip.items()},
        "cost": vars(objective.cost),
    }
    (stage / "README.md").write_text(model_card(run.config, average, facts), encoding="utf-8")
    return facts


def _convert(run: RunContext, teacher: VPDenoiser, config_hash: str) -> tuple[ConsistencyModel, dict[str, float]]:
    """The student before training and its RMSE from the teacher, by noise level.

    Where training has begun the time embedding is not refitted again: the weights are those of the checkpoint.
    """
    config, checkpoints = run.config.student, run.folder / "checkpoints" / "student"
    record = checkpoints / "conversion.json"
    errors, steps = None, config.refit_steps
    if list_checkpoints(checkpoints):
        with suppress(UserError):  # missing or damaged: it is made again
            kept = unsealed(read_json(record, {"config_hash": str, "rmse": {str: float}}))
            errors = kept["rmse"] if kept is not None and kept["config_hash"] == config_hash else None
    if errors is None:
        say(f"student: converting the teacher, refitting the time embedding ({steps} steps)")
    else:
        say("student: converting the teacher; its time embedding was refitted before")
    model = convert_teacher(
        teacher,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
        refit_steps=steps if errors is None else 0,
        generator=keyed_generator(run.config.seed, "refit"),
    )
    if errors is None:
        errors = {str(sigma): error for sigma, error in _conversion_error(run, model, teacher).items()}
        if bad := [sigma for sigma, error in errors.items() if not math.isfinite(error)]:
            remedy = f"its images or the student's are not finite at noise level {bad[0]}; give another teacher"
            raise UserError(run.folder / "teacher", None, remedy)
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(record, sealed({"config_hash": config_hash, "rmse": errors}))
    return model, errors


def _conversion_error(run: RunContext, model: ConsistencyModel, teacher: VPDenoiser) -> dict[float, float]:
    images = run.data.images[:128].to(run.device).float() / 127.5 - 1
    return conversion_error(model.eval(), teacher, images, keyed_generator(run.config.seed, "conversion"))
