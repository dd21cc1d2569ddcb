"""The evaluation stage: every sampler of the configuration under one protocol."""

import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.benchmark import BenchmarkSettings, assist, benchmark, remove_others
from fewstep.eval.features.extractors import Extractor, load_extractor
from fewstep.eval.images import Picked, indexed
from fewstep.eval.interfaces import IndexedImages
from fewstep.eval.quality.classes import RealClasses
from fewstep.eval.quality.reference_files import read_reference
from fewstep.eval.quality.references import Reference, load_reference
from fewstep.eval.speed.timing import Limits
from fewstep.files import sha256_file
from fewstep.pipeline.config.evaluation import EvalConfig
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.choice import labelled_reference
from fewstep.pipeline.data.stored import StoredData
from fewstep.pipeline.data.stream import StreamedData
from fewstep.pipeline.data.training import TrainingData
from fewstep.pipeline.sampling.cold_start import add_cold_starts
from fewstep.pipeline.sampling.models import ModelSampler, build_sampler, prepare_to_sample
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.stages.manifest import read_manifest
from fewstep.pipeline.stages.teacher import teacher_of
from fewstep.pipeline.training import processes
from fewstep.progress import say
from fewstep.students.load import load_student
from fewstep.teachers.guided import Guided
from fewstep.teachers.preconditioned import Preconditioned

MOST_SEARCHED = 2**27
"""Numbers of training images that are not in memory, among which near-copies are looked for."""


def evaluate(run: RunContext, stage: Path | None, identities: dict[str, str]) -> dict[str, Any]:
    """Measure into the run's work folder, which an interruption leaves for the next call, then move into `stage`.

    `identities`: by sampler name, a hash of all that its numbers depend on. Without a `stage`: make images beside the
    process that has one.
    """
    config, data = run.config.eval, run.config.data
    if stage is None:
        _assist(run, settings_of(config, identities, real=config.images))
        return {}
    names, trainings = run.config.samplers, run.config.trainings
    repeats = {str(name) for name in names if name.kind == "student" and trainings[name.subject].number > 1}
    samplers, extractor, teacher = _opened(run)
    say(
        f"eval: {len(samplers)} samplers, {config.images} images a seed block ({config.extractor}); "
        f"{config.seed_blocks} seed blocks, of DDPM {config.ddpm_seed_blocks}"
    )
    reference, labels, shown = reference_of(run, extractor)
    training = run.data.some(MOST_SEARCHED)
    work = run.folder / "checkpoints" / "eval"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "samplers").exists():
        _take_earlier(run.folder / "eval", work)
    remove_others(work, samplers)
    with processes.dealing() as shares:
        benchmark(
            samplers,
            reference=reference,
            shown=shown,
            training_images=training,
            training_features=training_features(config, run.data, data, extractor),
            classes=_classes(run, reference, labels, teacher.space.num_classes),
            extractor=extractor,
            settings=settings_of(
                config, identities, frozenset(repeats), real=count_of(reference), mirrored=data.horizontal_flip
            ),
            folder=work,
            device=run.device,
            say=lambda text: say(f"  {text}"),
            shares=shares,
        )
    timed = [sampler for sampler in samplers if sampler.name not in repeats]
    fewest = {sampler.subject: sampler for sampler in sorted(timed, key=lambda sampler: -sampler.nfe)}
    folders = {each.name: "" if each.kind == "teacher" else "students/" for each in fewest.values()}
    add_cold_starts(work, {name: f"{run.folder}/{folder}{name}" for name, folder in folders.items()}, run.device)
    for path in sorted(work.rglob("*")):  # copytree would hide a full disk in an error without a number
        if path.is_dir():
            (stage / path.relative_to(work)).mkdir()
        else:
            shutil.copyfile(path, stage / path.relative_to(work))
    return {"seed_blocks": config.seed_blocks}


def _opened(run: RunContext) -> tuple[list[ModelSampler], Extractor, Preconditioned | Guided]:
    """The samplers of the configuration, of the models in the run's folder, the extractor and the teacher."""
    extractor = load_extractor(run.config.eval.extractor, run.config.eval.weights, run.device)
    teacher, names = teacher_of(run), run.config.samplers
    used = [name for name in run.config.trainings if any(sampler.subject == name for sampler in names)]
    students = {name: load_student(run.folder / "students" / name, run.device) for name in used}
    for model in (teacher, *students.values()):
        prepare_to_sample(model)
    return [build_sampler(name, teacher, students) for name in names], extractor, teacher


def _assist(run: RunContext, settings: BenchmarkSettings) -> None:
    """Make this process's share of every seed block that the leading one calls out; the first one opens the models."""
    opened = cache(lambda: _opened(run))
    processes.follow(lambda name, seed: assist(*opened()[:2], settings, name, seed, processes.Shares()))


def _take_earlier(folder: Path, work: Path) -> None:
    """Copy what an earlier evaluation left: the benchmark keeps of it what is still of the same inputs."""
    outputs: dict[str, Any] = {}
    with suppress(UserError):  # there is none, or it is damaged
        outputs = read_manifest(folder)["outputs"]
    for name, output in outputs.items():
        file = folder / name
        if name != "benchmark.json" and file.is_file() and sha256_file(file) == output["sha256"]:
            (work / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, work / name)


def reference_of(run: RunContext, extractor: Extractor) -> tuple[Reference, Tensor | None, Tensor | IndexedImages]:
    """What quality is measured against, its labels, and real images to show beside the generated ones.

    The labels are None where the reference has none.
    """
    data, file = run.config.data, run.config.eval.reference
    if file is not None:
        return read_reference(file.expanduser(), extractor), None, run.data.some(MOST_SEARCHED)
    labels = run.data.labels if isinstance(run.data, StoredData) else None
    images, labels, split = labelled_reference(data, run.data, labels, run.data.class_names)
    say(f"  reference: {len(images):,} real images ({split}), their features from the cache or computed now")
    return load_reference(images, {"dataset": dataset_name(data.source), "split": split}, extractor), labels, images


def _classes(
    run: RunContext, reference: Reference, labels: Tensor | None, num_classes: int | None
) -> RealClasses | None:
    """The reference's classes, where what is measured has as many and it has any."""
    if num_classes is None or labels is None or reference.features is None or int(labels.max()) >= num_classes:
        return None
    names = run.data.class_names or tuple(map(str, range(num_classes)))
    return RealClasses(reference.features, labels, names) if len(names) == num_classes else None


def training_features(
    config: EvalConfig, images: Tensor | TrainingData, data: DataConfig, extractor: Extractor
) -> Tensor | None:
    """Features of `eval.training_features` training images, a fixed sample of them; None for 0 of them.

    Of a stream they are the first ones. They come through the cache of references: where these are the reference
    images, nothing is computed.
    """
    if config.training_features == 0:
        return None
    source: IndexedImages = images if isinstance(images, StoredData | StreamedData) else indexed(images)
    if isinstance(images, StreamedData):
        source = indexed(images.some(MOST_SEARCHED)[: config.training_features])
    elif config.training_features < len(images):
        picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: config.training_features]
        source = Picked(source, picked.sort().values)
    say(f"  near-copies: the features of {len(source):,} training images, from the cache or computed now")
    return load_reference(source, {"dataset": dataset_name(data.source), "split": data.split}, extractor).features


def settings_of(
    config: EvalConfig,
    identities: dict[str, str],
    repeats: frozenset[str] = frozenset(),
    *,
    real: int,
    mirrored: bool = False,
) -> BenchmarkSettings:
    """A benchmark's settings from the eval section of a configuration, against `real` images."""
    return BenchmarkSettings(
        images=config.images,
        seed_blocks=config.seed_blocks,
        ddpm_seed_blocks=config.ddpm_seed_blocks,
        batch_size=config.batch_size,
        kid_subset_size=config.kid_subset(real),
        limits=Limits(
            latency_runs=config.latency_runs,
            latency_seconds=config.latency_seconds,
            batch_sizes=config.throughput_batch_sizes,
            throughput_seconds=2 * config.latency_seconds,
        ),
        identities=identities,
        repeats=repeats,
        mirrored=mirrored,
    )


def count_of(reference: Reference) -> int:
    """Return the number of images that can be in a KID subset; of mere statistics there are none, and no KID."""
    return MOST_SEARCHED if reference.features is None else len(reference.features)


def dataset_name(source: str) -> str:
    """A data source without the machine's own folders: hub:ID as it is, parquet:LAST/FOLDER by its last part."""
    kind, _, place = source.partition(":")
    return f"{kind}:{Path(place).name}" if kind in ("parquet", "imagefolder") else source
