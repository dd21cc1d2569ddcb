"""The evaluation stage: every sampler of the configuration under one protocol."""

import shutil
from pathlib import Path
from typing import Any

import torch

from fewstep.eval.benchmark import BenchmarkSettings, benchmark
from fewstep.eval.extractors import load_extractor
from fewstep.eval.timing import Limits
from fewstep.pipeline.context import RunContext
from fewstep.pipeline.data import load_data
from fewstep.pipeline.log import say
from fewstep.pipeline.samplers import build_sampler
from fewstep.students.load import load_student
from fewstep.teachers.load import load_teacher


def evaluate(run: RunContext, stage: Path, identity: str) -> dict[str, Any]:
    """Measure into the run's work folder, which an interruption leaves for the next call, then move into `stage`."""
    config, data = run.config.eval, run.config.data
    split = data.reference_split or data.split
    reference = run.data.images if split == data.split else load_data(data, split).images
    teacher = load_teacher(run.folder / "teacher", run.device)
    student = load_student(run.folder / "student", run.device)
    for network in (teacher.unet, student):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    samplers = [build_sampler(name, teacher, student) for name in config.samplers]
    say(
        f"eval: {len(samplers)} samplers, {config.images} images a seed block, against {len(reference):,} real images "
        f"({config.extractor}); {config.seed_blocks} seed blocks, of DDPM {config.ddpm_seed_blocks}"
    )
    work = run.folder / "checkpoints" / "eval"
    work.mkdir(parents=True, exist_ok=True)
    benchmark(
        samplers,
        reference_images=reference,
        reference_provenance={"dataset": dataset_name(data.source), "split": split},
        training_images=run.data.images,
        extractor=load_extractor(config.extractor, config.inception_weights, run.device),
        settings=BenchmarkSettings(
            images=config.images,
            seed_blocks=config.seed_blocks,
            ddpm_seed_blocks=config.ddpm_seed_blocks,
            batch_size=config.batch_size,
            kid_subset_size=config.kid_subset_size,
            limits=Limits(
                latency_runs=config.latency_runs,
                latency_seconds=config.latency_seconds,
                batch_sizes=config.throughput_batch_sizes,
                throughput_seconds=2 * config.latency_seconds,
            ),
            identity=identity,
            mirrored=data.horizontal_flip,
        ),
        folder=work,
        device=run.device,
        say=lambda text: say(f"  {text}"),
    )
    shutil.copytree(work, stage, dirs_exist_ok=True)
    return {"seed_blocks": config.seed_blocks}


def dataset_name(source: str) -> str:
    """A data source without the machine's own folders: hub:ID as it is, parquet:LAST/FOLDER by its last part."""
    kind, _, place = source.partition(":")
    return f"{kind}:{Path(place).name}" if kind in ("parquet", "imagefolder") else source
