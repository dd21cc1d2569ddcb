"""The student stage: convert the teacher, distil, choose the noise levels, save and check the round trip.

Weights and noise levels have identities of their own: where only what the search reads has changed, the weights that
are there are kept.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import UserError
from fewstep.files import read_json, sealed, sha256_file, sha256_json, unsealed, write_json
from fewstep.pipeline.stages.card import model_card
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.training.checkpoint import list_checkpoints
from fewstep.pipeline.training.loop import train
from fewstep.progress import say
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.convert import conversion_error, convert_teacher
from fewstep.students.grid import solve_grid
from fewstep.students.load import load_student
from fewstep.students.objective import OBJECTIVES
from fewstep.students.save import save_student
from fewstep.teachers.denoiser import VPDenoiser
from fewstep.teachers.load import load_teacher


def make_student(
    run: RunContext, name: str, stage: Path, inputs: dict[str, Any], kept: dict[str, Any] | None
) -> dict[str, Any]:
    """Fill `stage` with a stock ConsistencyModelPipeline folder of the averaged weights and its model card.

    `kept`: the manifest of the student that is there, where its weights are to be kept and the levels searched again.
    """
    if kept is None:
        average, facts = _distil(run, name, sha256_json(inputs["weights"]))
    else:
        average = load_student(run.folder / "students" / name, run.device)
        facts = {key: kept[key] for key in ("conversion_rmse", "cost")}
    from fewstep.pipeline.stages.search import (  # seconds that a resumed training does not wait
        SEARCH_SEED,
        search_two_step,
    )

    config = run.config.students[name]
    search = search_two_step(run, config, average)
    best = min(search, key=lambda sigma: search[sigma])
    average.grid = solve_grid(best, average.sigma_min, average.sigma_max)
    say(f"  two-step noise level {best:g} is the best of {len(search)}")
    round_trip = save_student(average, stage)
    checked = ", ".join(str(steps) for steps in round_trip)
    say(f"  stock diffusers gives the same images to {max(round_trip.values()):.1e} at {checked} steps")
    facts |= {
        "search": {"seed_block": SEARCH_SEED, "images": config.search_images, "metric": "frechet distance"}
        | {"values": {str(sigma): value for sigma, value in search.items()}},
        "round_trip": {str(steps): difference for steps, difference in round_trip.items()},
    }
    if kept is not None:
        facts["seconds"] = kept["seconds"]  # of the distillation, beside which the search is short
    (stage / "README.md").write_text(model_card(run.config, name, average, facts), encoding="utf-8")
    return facts


def _distil(run: RunContext, name: str, identity: str) -> tuple[ConsistencyModel, dict[str, Any]]:
    """The averaged student after training, and what the manifest keeps of it; `identity` is its checkpoints'."""
    config, folder, key = run.config.students[name], run.folder / "teacher", run.config.student_key(name)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = sha256_file(weights)
    teacher = load_teacher(folder, run.device)
    teacher.unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    model, errors = _convert(run, name, teacher, identity)
    say(f"  the student starts within RMSE {max(errors.values()):.4f} of the teacher's denoiser")
    objective = OBJECTIVES[config.method.name](model, teacher, config.method.doublings)
    say(f"{run.title(name)}: distilling with {config.method.name} for {config.train.kimg:g} kimg")
    job = run.training_job(f"students/{name}", key, config.train, identity)
    average = train(objective, job, run.accelerated(config.train.precision))
    assert isinstance(average, ConsistencyModel)
    assert sha256_file(weights) == before, "the teacher's weights changed on disk"
    return average, {"conversion_rmse": errors, "cost": vars(objective.cost)}


def _convert(
    run: RunContext, name: str, teacher: VPDenoiser, identity: str
) -> tuple[ConsistencyModel, dict[str, float]]:
    """The student before training and its RMSE from the teacher, by noise level.

    Where training has begun the time embedding is not refitted again: the weights are those of the checkpoint.
    """
    config, checkpoints = run.config.students[name], run.folder / "checkpoints" / "students" / name
    record = checkpoints / "conversion.json"
    errors, steps = None, config.refit_steps
    if list_checkpoints(checkpoints):
        with suppress(UserError):  # missing or damaged: it is made again
            kept = unsealed(read_json(record, {"config_hash": str, "rmse": {str: float}}))
            errors = kept["rmse"] if kept is not None and kept["config_hash"] == identity else None
    if errors is None:
        say(f"{run.title(name)}: converting the teacher, refitting the time embedding ({steps} steps)")
    else:
        say(f"{run.title(name)}: converting the teacher; its time embedding was refitted before")
    model = convert_teacher(
        teacher,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
        refit_steps=steps if errors is None else 0,
        generator=run.student_generator(name, "refit"),
    )
    if errors is None:
        errors = {str(sigma): error for sigma, error in _conversion_error(run, name, model, teacher).items()}
        if bad := [sigma for sigma, error in errors.items() if not math.isfinite(error)]:
            remedy = f"its images or the student's are not finite at noise level {bad[0]}; give another teacher"
            raise UserError(run.folder / "teacher", None, remedy)
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(record, sealed({"config_hash": identity, "rmse": errors}))
    return model, errors


def _conversion_error(run: RunContext, name: str, model: ConsistencyModel, teacher: VPDenoiser) -> dict[float, float]:
    images = run.data.images[:128].to(run.device).float() / 127.5 - 1
    return conversion_error(model.eval(), teacher, images, run.student_generator(name, "conversion"))
