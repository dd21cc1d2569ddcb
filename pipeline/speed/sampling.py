"""Sampling beside the bare evaluations of the network that it is made of."""

import time
from statistics import median
from typing import Any

import torch

from fewstep.eval.images import labels_for
from fewstep.eval.speed.evaluations import each_evaluation
from fewstep.eval.speed.timing import BatchNoise, synchronise
from fewstep.pipeline.sampling.models import ModelSampler, prepare_to_sample, student_sampler, teacher_sampler
from fewstep.pipeline.speed.floor import Bare, bare
from fewstep.pipeline.speed.training import Subjects, converted
from fewstep.pipeline.speed.turns import seconds_of, spread
from fewstep.progress import say

DDPM_STEPS = 1000
STRETCH = 20  # evaluations in a turn
TURNS = 90  # at least


def measure_sampling(subjects: Subjects, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """DDPM's time over that of as many bare evaluations, and the student's one step over one, at each batch size."""
    teacher, _ = subjects.model()
    student = converted(teacher, subjects.student)
    steps = min(DDPM_STEPS, subjects.config.num_train_timesteps)
    samplers = [(teacher_sampler(teacher, "ddpm", steps), teacher), (student_sampler(student.eval(), 1), student)]
    found: dict[str, Any] = {}
    for sampler, model in samplers:
        prepare_to_sample(model)
        for batch in batch_sizes:
            measure = _many if sampler.nfe > STRETCH else _one
            row = measure(sampler, batch, subjects.run.device) | {"evaluations": sampler.nfe, "batch_size": batch}
            found[f"{sampler.name}, batch {batch}"] = row
            say(f"  {sampler.label}, batch {batch}: {row['ratio']['median']:.3f} times its bare evaluations")
    return found


@torch.inference_mode()
def _many(sampler: ModelSampler, batch: int, device: torch.device) -> dict[str, Any]:
    """Whole runs, interrupted after every STRETCH evaluations for as many bare ones."""
    call, network = Bare(bare(sampler.networks[0]), sampler.shape, batch), sampler.networks[0]
    ours: list[float] = []
    floor: list[float] = []
    evaluations, began = 0, 0.0

    def note(_: int) -> None:
        nonlocal evaluations, began
        if evaluations % STRETCH == 0:
            if evaluations:  # what comes after the last one is in the next run's first
                synchronise(device)
                ours.append(time.perf_counter() - began)
            floor.append(seconds_of(call, STRETCH, device))
            began = time.perf_counter()
        evaluations += 1

    with each_evaluation(network, note):
        while len(ours) < TURNS:
            sampler.sample(BatchNoise(sampler.shape, batch, device), labels_for(sampler, 0, batch))
    return _row(ours, floor[: len(ours)], STRETCH)


@torch.inference_mode()
def _one(sampler: ModelSampler, batch: int, device: torch.device) -> dict[str, Any]:
    """Whole runs and bare evaluations in turn, each from new noise to images."""
    call, noise = Bare(bare(sampler.networks[0]), sampler.shape, batch), BatchNoise(sampler.shape, batch, device)
    sample = lambda: sampler.sample(noise, labels_for(sampler, 0, batch))  # noqa: E731
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(TURNS + 1):
        ours.append(seconds_of(sample, 1, device))
        floor.append(seconds_of(call, 1, device))
    return _row(ours[1:], floor[1:], 1)


def _row(ours: list[float], floor: list[float], evaluations: int) -> dict[str, Any]:
    ratio = spread([mine / bare for mine, bare in zip(ours, floor, strict=True)])
    times = {"ms_per_evaluation": ours, "floor_ms": floor}
    return {name: 1000 * median(values) / evaluations for name, values in times.items()} | {"ratio": ratio}
