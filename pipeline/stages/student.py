"""The student stage: convert the teacher, distil, choose the noise levels, save and check the round trip.

Weights and noise levels have identities of their own: where only what the search reads has changed, the weights that
are there are kept.
"""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fewstep.errors import UserError
from fewstep.files import read_json, sealed, sha256_file, sha256_json, unsealed, write_json
from fewstep.pipeline.config.schema import StudentConfig, Training
from fewstep.pipeline.data.choice import choice_images
from fewstep.pipeline.sampling.grammar import STEPS
from fewstep.pipeline.stages.card import model_card
from fewstep.pipeline.stages.context import RunContext, training_layout
from fewstep.pipeline.stages.teacher import teacher_of
from fewstep.pipeline.training import processes
from fewstep.pipeline.training.checkpoint import list_checkpoints
from fewstep.pipeline.training.loop import train
from fewstep.pipeline.training.randomness import CONVERSION, REFIT, TRUSTED, regression_stream, training_stream
from fewstep.progress import say
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.convert import Regression, conversion_error, convert_teacher, judged_sigmas, trusted_range
from fewstep.students.ddim import DDIMStudent, ddim_student
from fewstep.students.interfaces import Student
from fewstep.students.load import load_student
from fewstep.students.methods.base import DistillationMethod
from fewstep.students.save import save_student
from fewstep.students.trajectories import Trajectories, read_trajectories
from fewstep.teachers.guided import Guided
from fewstep.teachers.interfaces import Condition, Denoiser, Objective
from fewstep.teachers.load import read_teacher
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import GROWING

CONVERSION_FILE = "conversion.json"
LARGE_RMSE = 0.25  # of images in [-1, 1]


def make_student(
    run: RunContext, training: Training, stage: Path | None, inputs: dict[str, Any], kept: dict[str, Any] | None
) -> dict[str, Any]:
    """Fill `stage` with the folder of a stock pipeline of the averaged weights and its model card.

    `kept`: the manifest of the student that is there, where its weights are to be kept and the levels searched again.
    Without a `stage` it works beside the process that has one.
    """
    steps: list[int] = (inputs["weights"] | inputs["search"]).get(f"{training.key}.steps", [])
    real = choice_images(run.config.data, run.data) if steps or run.config.chooses(training) else None
    if kept is None:
        average, facts = _distil(run, training, sha256_json(inputs["weights"]), real)
    else:
        average = load_student(run.folder / "students" / training.name, run.device)
        facts = {key: kept[key] for key in ("conversion_rmse", "regression", "cost", "quality") if key in kept}
    facts |= _noise_levels(run, training, average, real, steps)
    if stage is None:
        return {}
    round_trip = save_student(average, stage)
    checked = ", ".join(str(steps) for steps in round_trip)
    say(f"  stock diffusers gives the same images to {max(round_trip.values()):.1e} at {checked} steps")
    facts["round_trip"] = {str(steps): difference for steps, difference in round_trip.items()}
    if (classes := average.space.num_classes) is not None:
        names = run.data.class_names or ()
        facts["classes"] = list(names) if len(names) == classes else None
    if kept is not None:
        facts["seconds"] = kept["seconds"]  # of the distillation, beside which the search is short
    (stage / "README.md").write_text(model_card(run.config, training, average, facts), encoding="utf-8")
    return facts


def _noise_levels(
    run: RunContext, training: Training, model: Student, real: Tensor | None, steps: list[int]
) -> dict[str, Any]:
    """Choose the noise levels of a consistency model; what the manifest keeps of how they came about."""
    if isinstance(model, DDIMStudent):
        known = [each for each in STEPS if each <= model.most_steps]
        return {"search": None, "timesteps": {str(each): model.timesteps(each) for each in known}}
    if not steps:
        return {"search": None}
    assert isinstance(model, ConsistencyModel)
    assert real is not None
    from fewstep.pipeline.stages.search import assist_search, search_levels  # seconds that no resumed training waits

    if not processes.leads():
        assist_search(run, training.config, model, real)
        return {}
    model.grid, search = search_levels(run, training.config, model, real, steps)
    return {"search": search}


def _distil(run: RunContext, training: Training, identity: str, real: Tensor | None) -> tuple[Student, dict[str, Any]]:
    """The averaged student after training, and what the manifest keeps of it; `identity` is its checkpoints'.

    Of several averages it is the one with the best images, judged by the `real` ones of choices.
    """
    config, folder = training.config, run.folder / "teacher"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = sha256_file(weights)
    teacher = teacher_of(run)
    teacher.network.to(memory_format=training_layout(config.train.precision))
    method = cast(DistillationMethod, config.method)
    if method.student == "ddim":
        model, conversion = ddim_student(teacher, read_teacher(folder)[1]), {}
    else:
        model, conversion = _convert(run, training, teacher, identity)
    source = read_trajectories(run.folder / "trajectories") if method.reads_trajectories else teacher
    objective = student_objective(config, model, source, teacher)
    say(f"{run.title(training.name)}: distilling with {config.method.name} for {config.train.kimg:g} kimg")
    place, seed, stream = f"students/{training.name}", run.training_seed(training), training_stream(training.student)
    job = run.training_job(place, training.key, stream, config.train, identity, seed)
    cost = objective.cost
    if isinstance(teacher, Guided):  # two evaluations in one
        cost = replace(cost, teacher=2 * cost.teacher)
    cost = vars(cost) | {"forward_equivalents": cost.forward_equivalents}
    facts, quality = conversion | {"cost": cost}, None
    if config.quality_kimg is not None or len(config.train.halflives) > 1:
        assert real is not None
        from fewstep.pipeline.stages.quality import Quality  # seconds that other trainings do not wait

        quality = Quality(run, config.search_images, real)
    accelerator = run.accelerated(config.train.precision)
    averages = train(objective, job, accelerator, quality, config.quality_kimg or math.inf)
    average = next(iter(averages.values()))
    if quality is not None and processes.leads():
        average, facts["quality"] = quality.best(averages)
    assert isinstance(average, Student)
    assert sha256_file(weights) == before, "the teacher's weights changed on disk"
    return average, facts


def student_objective(
    config: StudentConfig, model: Student, source: Trajectories | Denoiser, teacher: Preconditioned | Guided
) -> Objective:
    """What trains `model` in place by its method, with the finishes that are configured.

    source: what the method is built with, trajectories of the teacher or itself.
    """
    objective = cast(DistillationMethod, config.method).build(model, source)
    if config.matching is not None:
        assert isinstance(model, ConsistencyModel)
        objective = config.matching.build(objective, model, teacher)
    return objective if config.adversarial is None else config.adversarial.build(objective)


def _convert(
    run: RunContext, training: Training, teacher: Preconditioned | Guided, identity: str
) -> tuple[ConsistencyModel, dict[str, Any]]:
    """The student before distillation, and how far its denoiser is from the teacher's, for the manifest.

    Where training has begun the time embedding is not refitted again: the weights are those of the checkpoint.
    """
    config, checkpoints = training.config, run.folder / "checkpoints" / "students" / training.name
    facts, steps = processes.led(lambda: _kept_conversion(checkpoints, identity)), config.refit_steps
    if facts is None:
        say(
            f"{run.title(training.name)}: converting the {teacher.scaling.name} teacher, "
            f"refitting its time embedding ({steps} steps)"
        )
    else:
        say(f"{run.title(training.name)}: converting the teacher; its time embedding was refitted before")
    model, exact = convert_teacher(
        teacher,
        sigma_min=config.noise_range[0],
        sigma_max=config.noise_range[1],
        refit_steps=steps if facts is None else 0,
        generator=run.student_generator(training, REFIT),
    )
    if facts is not None:
        return model, facts
    facts = {}
    if not exact and _regression_kimg(config) > 0:
        model, trusted = _regress(run, training, model, teacher, identity)
        facts["regression"] = {"kimg": _regression_kimg(config), "teacher_trusted_between": trusted}
    facts["conversion_rmse"] = _conversion_error(run, training, model, teacher)
    if processes.leads():
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(checkpoints / CONVERSION_FILE, sealed({"config_hash": identity, "facts": facts}))
    return model, facts


def _kept_conversion(checkpoints: Path, identity: str) -> dict[str, Any] | None:
    """What an earlier call found of the conversion, where its training has begun; missing or damaged: None."""
    if not list_checkpoints(checkpoints):
        return None
    with suppress(UserError):
        kept = unsealed(
            read_json(checkpoints / CONVERSION_FILE, {"config_hash": str, "facts": {"conversion_rmse": {str: float}}})
        )
        return kept["facts"] if kept is not None and kept["config_hash"] == identity else None
    return None


def _regression_kimg(config: StudentConfig) -> float:
    """How long a student is regressed onto a teacher that cannot be folded."""
    if config.regression_kimg is None:
        return 0.0 if config.method.reads_trajectories else 20.0
    return config.regression_kimg


def _regress(
    run: RunContext, training: Training, model: ConsistencyModel, teacher: Preconditioned | Guided, identity: str
) -> tuple[ConsistencyModel, tuple[float, float] | None]:
    """The student regressed onto the teacher, ready to train, and the noise levels at which the teacher was trusted."""
    config, kimg = training.config, _regression_kimg(training.config)
    images, condition = _images(run, teacher, 512)
    trusted = trusted_range(teacher, images, run.student_generator(training, TRUSTED), condition)
    where = "between noise levels {:.3g} and {:.3g}".format(*trusted) if trusted else "nowhere"
    say(
        f"{run.title(training.name)}: regressing onto the teacher for {kimg:g} kimg, onto images "
        f"where it denoises no better than a shrinkage does (it is better {where})"
    )
    changes = {"kimg": kimg, "ema_halflife_kimg": min(config.train.halflives.values())}
    short = config.train.model_copy(update=changes)
    place, seed = f"students/{training.name}/regression", run.training_seed(training)
    job = run.training_job(place, training.key, regression_stream(training.student), short, identity, seed)
    (average,) = train(Regression(model, teacher, trusted), job, run.accelerated(short.precision)).values()
    assert isinstance(average, ConsistencyModel)
    return average.requires_grad_(True).train(), trusted


def _conversion_error(
    run: RunContext, training: Training, model: ConsistencyModel, teacher: Preconditioned | Guided
) -> dict[str, float]:
    """{noise level: RMSE} over levels that both have, which is said too; UserError where one is not finite."""
    generator, was_training = run.student_generator(training, CONVERSION), model.training
    images, condition = _images(run, teacher, 128)
    sigmas = judged_sigmas(model, teacher)
    errors = conversion_error(model.eval(), teacher, images, generator, sigmas, condition)
    model.train(was_training)
    if bad := [sigma for sigma, error in errors.items() if not math.isfinite(error)]:
        remedy = f"its images or the student's are not finite at noise level {bad[0]}; give another teacher"
        raise UserError(run.folder / "teacher", None, remedy)
    worst = max(errors, key=lambda sigma: errors[sigma])
    say(
        f"  the student starts within RMSE {errors[worst]:.4f} of the teacher's denoiser (worst at sigma {worst:g})"
        f"{_judged(errors[worst], worst, teacher.scaling.name)}"
    )
    return {f"{sigma:g}": error for sigma, error in errors.items()}


def _judged(error: float, sigma: float, prediction: str) -> str:
    """Return what to make of the student's largest difference from the teacher, if it is large."""
    if error <= LARGE_RMSE:
        return ""
    if prediction in GROWING and sigma > 1:
        return ". That is expected: at large sigma a teacher that predicts noise or a score is inexact itself"
    return ". That is much, and not expected: hold the teacher against the data with fewstep inspect --data"


def _images(run: RunContext, teacher: Denoiser, num: int) -> tuple[Tensor, Condition]:
    """The first `num` images of the data, in [-1, 1], and of a class-conditional teacher their classes."""
    images, labels = run.data.first(num)
    given = None if teacher.space.num_classes is None or labels is None else labels.to(run.device)
    return images.to(run.device).float() / 127.5 - 1, Condition(labels=given)
