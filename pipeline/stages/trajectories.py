"""The trajectories stage: points of the teacher's own trajectories, made once for all students that learn from them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.features.table import EXTRACTORS
from fewstep.eval.images import TensorImages, to_uint8
from fewstep.eval.quality.metrics import frechet_distance, statistics
from fewstep.eval.quality.references import extract
from fewstep.files import read_json, sha256_file, write_json
from fewstep.pipeline.data.choice import choice_count, choice_images
from fewstep.pipeline.stages.context import RunContext, training_layout
from fewstep.pipeline.stages.teacher import teacher_of
from fewstep.pipeline.training import processes
from fewstep.pipeline.training.randomness import TRAJECTORIES, keyed_generator
from fewstep.progress import ProgressLine, say
from fewstep.students.convert import check_convertible
from fewstep.students.trajectories import SHARD, Trajectories, read_trajectories, shard_path, write_record, write_shard
from fewstep.teachers.guided import Guided
from fewstep.teachers.interfaces import Condition
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.trajectory import trajectory, trajectory_sigmas


def make_trajectories(run: RunContext, stage: Path | None, identity: str, ends: tuple[float, float]) -> dict[str, Any]:
    """Fill `stage` with the trajectories of the teacher between `ends`, which are (sigma_min, sigma_max).

    They are made shard by shard in the folder of checkpoints, where an interruption leaves those that are whole. The
    shards are dealt to the processes in turn; None: make this one's share beside the process that has a `stage`.
    """
    settings, work = run.config.trajectories, run.folder / "checkpoints" / "trajectories" / identity[:16]
    sigma_min, sigma_max = ends
    teacher = teacher_of(run)
    check_convertible(teacher, sigma_max)  # before the work is done and not after it
    teacher.network.to(memory_format=training_layout(settings.precision))
    sigmas = trajectory_sigmas(settings.steps, sigma_min, sigma_max)
    evaluations = settings.number * settings.steps * (2 if isinstance(teacher, Guided) else 1)
    say(f"trajectories: {settings.number:,} of {settings.steps} steps, {evaluations:,} evaluations of the teacher")
    work.mkdir(parents=True, exist_ok=True)
    starts, shares = range(0, settings.number, SHARD), processes.Shares()
    with ProgressLine("trajectories", settings.number) as line:
        for number in range(shares.index, len(starts), shares.number):
            start = starts[number]
            count = min(SHARD, settings.number - start)
            path = shard_path(work, number)
            if not _is_whole(path):
                write_shard(path, _points(run, teacher, sigmas, number, count))
                write_json(path.with_suffix(".json"), {"sha256": sha256_file(path)})
            line.update(start + count, f"{start + count:,}")
    processes.meet()
    if stage is None:
        return {}
    record = (settings.number, sigmas.float().tolist(), teacher.space.num_classes)
    write_record(work, *record)
    facts = {"evaluations": evaluations} | _end_distance(run, read_trajectories(work))
    for path in work.glob("*.safetensors"):  # last: what was moved does not survive an interruption
        os.replace(path, stage / path.name)
    write_record(stage, *record)
    return facts


def _points(run: RunContext, teacher: Preconditioned | Guided, sigmas: Tensor, number: int, count: int) -> Tensor:
    """The `count` trajectories of shard `number`, [count, len(sigmas), C, H, W] as they are kept."""
    settings, generator = run.config.trajectories, keyed_generator(run.config.seed, TRAJECTORIES, number)
    noise = torch.randn((count, *teacher.space.shape), generator=generator)
    classes, first = teacher.space.num_classes, number * SHARD
    labels = None if classes is None else (torch.arange(first, first + count) % classes).to(run.device)
    condition, batch = Condition(labels=labels), run.config.eval.batch_size
    parts = [slice(start, start + batch) for start in range(0, count, batch)]
    with torch.autocast(run.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        made = [trajectory(teacher, sigmas, noise[part].to(run.device), condition.of(part)).cpu() for part in parts]
    points = torch.cat(made)
    points = points.to(getattr(torch, settings.dtype))
    if not bool(points.isfinite().all()):
        raise UserError(run.folder / "teacher", None, f"a trajectory of it is not finite as {settings.dtype}")
    return points


def _is_whole(path: Path) -> bool:
    """Whether a shard stands as it was written."""
    with suppress(UserError, FileNotFoundError):  # its record is missing or damaged, or the shard was moved
        return read_json(path.with_suffix(".json"), {"sha256": str})["sha256"] == sha256_file(path)
    return False


def _end_distance(run: RunContext, made: Trajectories) -> dict[str, Any]:
    """Measure how far the ends are from the images of choices, which tells a teacher that was sampled badly.

    Without an extractor that comes with the package, or with too few images for it, nothing is measured.
    """
    config = run.config.eval
    known = EXTRACTORS[config.extractor]
    if not known.shipped or known.only not in (None, run.data.shape):
        return {}
    count = min(len(made), config.images)
    if min(count, choice_count(run.config.data, len(run.data))) <= known.dim:
        return {}
    real = choice_images(run.config.data, run.data)
    extractor = load_extractor(config.extractor, config.weights, run.device)
    images = {"ends of trajectories": to_uint8(made.ends(count)), "real images": real}
    pair = [statistics(extract(extractor, TensorImages(each), title)) for title, each in images.items()]
    distance = frechet_distance(*pair)
    say(f"  FD ({config.extractor}) of {count:,} ends against {len(real):,} real images: {distance:.4g}")
    return {"fd": distance, "fd_images": count}
