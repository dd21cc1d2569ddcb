"""The student stage: convert the teacher, distil, choose the two-step noise level, save and check the round trip."""

from pathlib import Path
from typing import Any

import torch

from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.extractors import Extractor, load_extractor
from fewstep.eval.images import Generated, TensorImages
from fewstep.eval.metrics import frechet_distance, statistics
from fewstep.eval.reference import extract
from fewstep.files import sha256_file
from fewstep.pipeline.card import model_card
from fewstep.pipeline.context import RunContext
from fewstep.pipeline.loop import train
from fewstep.pipeline.randomness import keyed_generator
from fewstep.pipeline.samplers import student_sampler
from fewstep.progress import say
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.convert import conversion_error, convert_teacher
from fewstep.students.grid import solve_grid
from fewstep.students.objective import OBJECTIVES
from fewstep.students.save import save_student
from fewstep.teachers.denoiser import VPDenoiser
from fewstep.teachers.load import load_teacher

SEARCHED_SIGMAS = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5, 4.0)
SEARCH_SEED = 4095
"""The seed block of the search: no benchmark that starts at block 0 reaches it."""


def make_student(run: RunContext, stage: Path, config_hash: str) -> dict[str, Any]:
    """Fill `stage` with a stock ConsistencyModelPipeline folder of the averaged weights and its model card."""
    config, folder = run.config.student, run.folder / "teacher"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = sha256_file(weights)
    teacher = load_teacher(folder, run.device)
    teacher.unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    say(f"student: converting the teacher, refitting the time embedding ({config.refit_steps} steps)")
    model = convert_teacher(
        teacher,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
        refit_steps=config.refit_steps,
        generator=keyed_generator(run.config.seed, "refit"),
    )
    errors = _conversion_error(run, model, teacher)
    say(f"  the student starts within RMSE {max(errors.values()):.4f} of the teacher's denoiser")
    objective = OBJECTIVES[config.objective](model, teacher, config.doublings)
    say(f"student: distilling with {config.objective} for {config.train.kimg:g} kimg, {config.doublings} doublings")
    job = run.training_job("student", config.train, config_hash)
    average = train(objective, job, run.accelerated(config.train.precision))
    assert isinstance(average, ConsistencyModel)
    search = search_two_step(run, average)
    best = min(search, key=lambda sigma: search[sigma])
    average.grid = solve_grid(best, average.sigma_min, average.sigma_max)
    say(f"  two-step noise level {best:g} is the best of {len(search)}")
    round_trip = save_student(average, stage)
    checked = ", ".join(str(steps) for steps in round_trip)
    say(f"  stock diffusers gives the same images to {max(round_trip.values()):.1e} at {checked} steps")
    assert sha256_file(weights) == before, "the teacher's weights changed on disk"
    facts = {
        "conversion_rmse": {str(sigma): error for sigma, error in errors.items()},
        "search": {"seed_block": SEARCH_SEED, "images": config.search_images, "metric": "frechet distance"}
        | {"values": {str(sigma): value for sigma, value in search.items()}},
        "round_trip": {str(steps): difference for steps, difference in round_trip.items()},
        "cost": vars(objective.cost),
    }
    (stage / "README.md").write_text(model_card(run.config, average, facts), encoding="utf-8")
    return facts


def search_two_step(run: RunContext, model: ConsistencyModel) -> dict[float, float]:
    """Frechet distance of two-step samples, by intermediate noise level, on a seed block of its own.

    It is taken to training images, never to a held-out reference: choosing on what one is judged by flatters.
    """
    config = run.config
    extractor: Extractor = load_extractor(config.eval.extractor, config.eval.extractor_weights, run.device)
    count = min(len(run.data.images), 4 * config.student.search_images)
    order = torch.randperm(len(run.data.images), generator=keyed_generator(config.seed, "search"))
    real = extract(extractor, TensorImages(run.data.images[order[:count]]), f"features of {count} training images")
    target = statistics(real)
    images = config.student.search_images
    say(f"  searching the two-step noise level: {len(SEARCHED_SIGMAS)} of them, {images} images each")
    model.register_forward_pre_hook(stop_if_cancelled)
    values = {}
    for sigma in SEARCHED_SIGMAS:
        sampler = student_sampler(model, 2, [model.sigma_max, sigma])
        source = Generated(sampler, SEARCH_SEED, config.student.search_images, config.eval.batch_size)
        features = extract(extractor, source, f"two steps, sigma {sigma:g}", config.eval.batch_size)
        values[sigma] = frechet_distance(statistics(features), target)
    return values


def _conversion_error(run: RunContext, model: ConsistencyModel, teacher: VPDenoiser) -> dict[float, float]:
    images = run.data.images[:128].to(run.device).float() / 127.5 - 1
    return conversion_error(model.eval(), teacher, images, keyed_generator(run.config.seed, "conversion"))
