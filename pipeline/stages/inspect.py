"""`fewstep inspect MODEL --data SOURCE`: what a model does on images, how long it takes, and pictures of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.images import Generated, grid, to_uint8
from fewstep.eval.report.tables import duration, number
from fewstep.files import staged_folder
from fewstep.pipeline.config.keys import validated
from fewstep.pipeline.config.schema import DataConfig, TrajectoryConfig
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.sampling.models import prepare_to_sample, teacher_sampler
from fewstep.pipeline.stages.denoising import (
    BATCH,
    EQUAL,
    LARGEST,
    Filters,
    compared,
    denoise,
    fit_filters,
    likely_other,
    verdict,
    worse_at,
)
from fewstep.pipeline.training.processes import join
from fewstep.pipeline.training.signals import raising_signals
from fewstep.teachers.folder import model_folder
from fewstep.teachers.interfaces import Condition, Denoiser, per_image, randn
from fewstep.teachers.load import load_teacher
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.solvers import levels
from fewstep.teachers.trajectory import trajectory_sigmas

IMAGES, LEVELS, RANGE = 512, 10, (0.002, 80.0)
OTHERS = 2**25  # numbers of the images that the filters are fitted to; 8,192 images at most
PREVIEWS, SOLVER, STEPS = 16, "dpmsolver++", 20
COLUMNS, SHOWN = 8, slice(3, 7)  # of denoised.png, and of the levels, whose middle it shows
_WORSE = {
    "expected": "That is expected of a network that predicts noise or a score: its error grows with sigma.\n"
    "  You can go on: sampling divides that error by sigma, and a student learns from clean images there",
    "unexpected": "That is not expected of a sound model at these noise levels: read the verdict before you\n"
    "  go on; the model may be undertrained, trained on other images, or configured wrongly",
}
KIMG, EVALUATIONS = 100, 3  # of a student's training, and its evaluations of a network for an image


def measure(folder: Path, data: Mapping[str, Any], out: Path | None = None) -> dict[str, Any]:
    """How well the model of a folder denoises, as JSON; with `out`, a new folder, pictures of it.

    `data` has values of the data section, whose images take the model's size and channels. IMAGES of them are measured,
    at most half, so that others are left to fit filters to, at LEVELS noise levels of the model's within RANGE, in
    equal steps of ln sigma. {"data", "images", "by_class" (whether the filters know the classes), "denoising" (a list,
    see `compared`), "likely_prediction" (None: as configured), "worse" (see `worse_at`), "verdict",
    "ms_per_evaluation" (of one image, in batches of "batch_size" on "device"), "estimated_s": {"trajectories",
    "training_100_kimg"}}, of pictures {"out", "shown_sigmas"}.

    UserError: `out` is there and not empty; a fault of the data or the model; a consistency model, which denoises only
    at its smallest noise level; a conditional model and data without labels.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("--out", str(out), "exists and is not an empty folder; give a new one")
    config = validated(DataConfig, data, "data.")
    if model_folder(folder).index.get("_class_name") == "ConsistencyModelPipeline":
        raise UserError(folder, None, "is a student, whose output at a noise level is no denoiser's: leave out --data")
    with raising_signals():
        device = join()
        model = load_teacher(folder, device)
        prepare_to_sample(model)
        images, labels, filters = _prepared(model, config)
        condition = Condition(labels=None if labels is None else labels.to(device))
        low, high = max(model.space.sigma_min, RANGE[0]), min(model.space.sigma_max, RANGE[1])
        sigmas = trajectory_sigmas(LEVELS - 1, low, high).flip(0).tolist()
        errors, seconds = denoise(model, images, condition, sigmas, device)
        rows = [compared(filters, *each) for each in zip(sigmas, errors, strict=True)]
        if bad := [row["sigma"] for row in rows if not math.isfinite(row["error"])]:
            raise UserError(folder, None, f"what it makes of images at sigma {bad[0]:.3g} is not finite")
        settings, prediction = TrajectoryConfig(), model.scaling.name
        found: dict[str, Any] = {"data": config.source, "images": len(images), "by_class": labels is not None}
        found |= {"denoising": rows, "likely_prediction": likely_other(rows, prediction)}
        found |= {"worse": worse_at(rows, prediction), "verdict": verdict(rows, prediction)}
        found |= {"ms_per_evaluation": 1000 * seconds}
        found |= {"batch_size": min(BATCH, len(images)), "device": device.type}
        trajectories, training = settings.number * settings.steps * seconds, KIMG * 1000 * EVALUATIONS * seconds
        found |= {"estimated_s": {"trajectories": trajectories, f"training_{KIMG}_kimg": training}}
        if out is not None:
            few, found["out"], found["shown_sigmas"] = slice(COLUMNS), str(out), sigmas[SHOWN]
            with staged_folder(out) as stage:
                _save(stage / "preview.png", _preview(model), 4)
                denoised = _denoised(model, images[few], condition.of(few), sigmas[SHOWN], device)
                _save(stage / "denoised.png", denoised, COLUMNS)
    return found


def _prepared(model: Preconditioned, config: DataConfig) -> tuple[Tensor, Tensor | None, Filters]:
    """Images to measure on, uint8 [N, C, H, W], their labels where the model needs them, and filters of others."""
    channels, side, _ = model.space.shape
    data = load_data(config.model_copy(update={"image_size": side, "channels": channels}), config.split)
    labels, classes = None, model.space.num_classes
    if classes is not None:
        labels = data.labels
        if labels is None:
            remedy = f"{config.source} has no labels, which a class-conditional model needs"
            raise UserError("data.label_column", config.label_column, remedy)
        if (last := int(labels.max())) >= classes:
            raise UserError("data.source", config.source, f"has labels up to {last}, and the model {classes} classes")
    if len(data.images) < 2:
        raise UserError("data.source", config.source, "holds one image: give two or more")
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))  # they may lie class by class
    count = min(IMAGES, len(order) // 2)
    mine, others = order[:count], order[count:][: min(8192, max(OTHERS // math.prod(model.space.shape), 1))]
    images, rest = data.images[mine], data.images[others]
    if labels is None:
        return images, None, fit_filters(images, rest)
    return images, labels[mine], fit_filters(images, rest, (labels[mine], labels[others]))


def measured_text(found: Mapping[str, Any]) -> str:
    """What `measure` found, for people."""
    rows, columns = found["denoising"], ("sigma", "error", "linear", "shrinkage")
    lines = ["", f"root mean squared error of D(x; sigma) on {found['images']} images of {found['data']}, in [-1, 1]"]
    lines.append("".join(f"{name:>11}" for name in columns))
    for row in rows:
        cells = ("-" if row[name] is None else number(row[name]) for name in columns)
        mark = "" if row["against"] == "better" else f"  {row['against']}"
        lines.append("".join(f"{cell:>11}" for cell in cells) + mark)
    whole, marks = rows[0]["linear"] is None, {row["against"] for row in rows}
    bar = "shrinkage" if whole else "linear"
    linear = f"left out: more than {LARGEST:,} numbers an image" if whole else "the best linear filter of other images"
    around = "the mean image of the class" if found["by_class"] else "their mean image"
    lines.append(f"linear: {linear}; shrinkage: towards {around}, which takes no network")
    if "equal" in marks:
        lines.append(f"equal: at most {100 * (EQUAL - 1):.0f} % above {bar}, as good denoisers are at large sigma")
    if found["worse"] is not None:
        lines.append(f"worse: than {bar}. {_WORSE[found['worse']]}")
    settings, estimated = TrajectoryConfig(), found["estimated_s"]
    made, trained = (duration(seconds) for seconds in estimated.values())
    lines += ["", f"verdict: {found['verdict']}", ""]
    lines += [
        f"{number(found['ms_per_evaluation'])} ms an evaluation of an image, in batches of {found['batch_size']} on "
        f"{found['device']}; an estimate for this machine from that:",
        f"  {made}: {settings.number:,} trajectories of {settings.steps} evaluations",
        f"  {trained}: training for {KIMG} kimg at {EVALUATIONS} evaluations an image",
    ]
    if "out" in found:
        shown = ", ".join(f"{sigma:.3g}" for sigma in found["shown_sigmas"])
        lines.append(f"{found['out']}/preview.png: {PREVIEWS} images, made by {SOLVER}")
        lines.append(
            f"{found['out']}/denoised.png: clean; then, at sigma {shown}, x/sqrt(1 + sigma^2) above D(x; sigma)"
        )
    return "\n".join(lines)


def _preview(model: Preconditioned) -> Tensor:
    """Images that a solver makes with the model, all classes in turn, uint8 [PREVIEWS, C, H, W]."""
    sampler = teacher_sampler(model, SOLVER, min(STEPS, len(levels(model.space))))
    return Generated(sampler, 0, PREVIEWS, PREVIEWS).images(0, PREVIEWS)


@torch.inference_mode()
def _denoised(
    model: Denoiser, images: Tensor, condition: Condition, sigmas: Sequence[float], device: torch.device
) -> Tensor:
    """uint8 images [N, C, H, W], and after them for each level the same ones noisy and denoised."""
    sigma = torch.tensor(sigmas, device=device).repeat_interleave(len(images))
    x_0 = (images.to(device).float() / 127.5 - 1).repeat(len(sigmas), 1, 1, 1)
    labels = None if condition.labels is None else condition.labels.repeat(len(sigmas))
    x = x_0 + per_image(sigma) * randn(tuple(x_0.shape), torch.Generator().manual_seed(0), device)
    pair = x / per_image(1 + sigma**2).sqrt(), model(x, sigma, Condition(labels=labels))
    noisy, estimates = (to_uint8(each).cpu().unflatten(0, (len(sigmas), len(images))) for each in pair)
    return torch.cat([images, torch.stack([noisy, estimates], dim=1).flatten(0, 2)])


def _save(path: Path, images: Tensor, columns: int) -> None:
    picture = grid(images, min(columns, len(images)), padding=1)
    factor = max(1, 800 // max(picture.size))  # small images enlarged
    picture.resize((picture.width * factor, picture.height * factor), resample=0).save(path)
