"""The student stage: convert the teacher, distil, choose noise levels, save and check the round trip."""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from fewstep.students.convert import Regression, conversion_error, convert_teacher, judged_sigmas, trusted_range
from fewstep.students.methods.cd import CD
from fewstep.students.methods.ect import ECT
from fewstep.students.save import save_student
from fewstep.teachers.load import load_teacher
from fewstep.teachers.preconditioned import Preconditioned

METHODS: dict[str, Any] = {"cd": CD, "ect": ECT}


def make_student(run: RunContext, stage: Path, config_hash: str) -> dict[str, Any]:
    """Fill `stage` with a stock ConsistencyModelPipeline folder of the averaged weights and its model card."""
    config, folder = run.config.student, run.folder / "teacher"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = sha256_file(weights)
    real = choice_images(run.config.data, run.data.images)
    teacher = load_teacher(folder, run.device)
    teacher.network.to(memory_format=torch.channels_last)
    model, conversion = _convert(run, teacher, config_hash)
    objective = METHODS[config.objective](doublings=config.doublings).build(model, teacher)
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
    facts = conversion | {
        "search": search,
        "round_trip": {str(steps): difference for steps, difference in round_trip.items()},
        "cost": vars(objective.cost),
    }
    (stage / "README.md").write_text(model_card(run.config, average, facts), encoding="utf-8")
    return facts


def _convert(run: RunContext, teacher: Preconditioned, config_hash: str) -> tuple[ConsistencyModel, dict[str, Any]]:
    """The student before distillation, and how far its denoiser is from the teacher's, for the manifest.

    Where training has begun the time embedding is not refitted again: the weights are those of the checkpoint.
    """
    config, checkpoints = run.config.student, run.folder / "checkpoints" / "student"
    record = checkpoints / "conversion.json"
    facts, steps = None, config.refit_steps
    if list_checkpoints(checkpoints):
        with suppress(UserError):  # missing or damaged: it is made again
            kept = unsealed(read_json(record, {"config_hash": str, "facts": {"conversion_rmse": {str: float}}}))
            facts = kept["facts"] if kept is not None and kept["config_hash"] == config_hash else None
    if facts is None:
        say(f"student: converting the teacher ({teacher.scaling.name}), refitting the time embedding ({steps} steps)")
    else:
        say("student: converting the teacher; its time embedding was refitted before")
    model, exact = convert_teacher(
        teacher,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
        refit_steps=steps if facts is None else 0,
        generator=keyed_generator(run.config.seed, "refit"),
    )
    if facts is not None:
        return model, facts
    trusted = None
    if not exact and config.regression_kimg > 0:
        model, trusted = _regress(run, model, teacher, config_hash)
    facts = {"conversion_rmse": _conversion_error(run, model, teacher)}
    if trusted is not None:
        facts |= {"regression": {"kimg": config.regression_kimg, "teacher_trusted_between": trusted}}
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(record, sealed({"config_hash": config_hash, "facts": facts}))
    return model, facts


def _regress(
    run: RunContext, model: ConsistencyModel, teacher: Preconditioned, config_hash: str
) -> tuple[ConsistencyModel, list[float]]:
    """The student regressed onto the teacher, ready to train, and the noise levels at which the teacher was trusted."""
    config = run.config.student
    low, high = trusted_range(teacher, _images(run, 512), keyed_generator(run.config.seed, "trusted"))
    say(
        f"student: regressing onto the teacher for {config.regression_kimg:g} kimg, onto clean images where it "
        f"denoises worse than a shrinkage (outside noise levels {low:.3g} to {high:.3g})"
    )
    warmup = min(config.train.warmup_kimg, config.regression_kimg / 10)
    short = replace(config.train, kimg=config.regression_kimg, warmup_kimg=warmup)
    job = run.training_job("student-regression", short, config_hash, "student/regression")
    average = train(Regression(model, teacher, (low, high)), job, run.accelerated(short.precision))
    assert isinstance(average, ConsistencyModel)
    return average.requires_grad_(True).train(), [low, high]


def _conversion_error(run: RunContext, model: ConsistencyModel, teacher: Preconditioned) -> dict[str, float]:
    """{noise level: RMSE} over levels that both have, which is said too; UserError where one is not finite."""
    generator, was_training = keyed_generator(run.config.seed, "conversion"), model.training
    errors = conversion_error(model.eval(), teacher, _images(run, 128), generator, judged_sigmas(model, teacher))
    model.train(was_training)
    if bad := [sigma for sigma, error in errors.items() if not math.isfinite(error)]:
        remedy = f"its images or the student's are not finite at noise level {bad[0]}; give another teacher"
        raise UserError(run.folder / "teacher", None, remedy)
    worst = max(errors, key=lambda sigma: errors[sigma])
    say(f"  the student starts within RMSE {errors[worst]:.4f} of the teacher's denoiser (worst at sigma {worst:g})")
    return {f"{sigma:g}": error for sigma, error in errors.items()}


def _images(run: RunContext, num: int) -> Tensor:
    return run.data.images[:num].to(run.device).float() / 127.5 - 1
