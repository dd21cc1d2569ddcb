"""How fast a file is beside torch, taking turns on one machine, and with which options onnxruntime runs it fastest."""

import math
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fewstep.eval.images import labels_for
from fewstep.eval.interfaces import Sampler
from fewstep.eval.speed.timing import BatchNoise
from fewstep.pipeline.sampling.onnx import OPTIMIZATIONS, OnnxSampler

BATCHES = (1, 64)
SECONDS = 1.5
"""For each of those that take turns, at each batch."""
FEWEST = 5
"""Turns, however long they are."""
PAUSE, RUNS = 0.02, 4
"""Seconds before each turn, and counted runs in it."""
CPU = torch.device("cpu")


def side_by_side(samplers: Mapping[str, Sampler]) -> dict[str, dict[str, float]]:
    """{name: {"1": images a second at batch 1, "64": at batch 64}}, medians of runs that take turns on the CPU."""
    found: dict[str, dict[str, float]] = {name: {} for name in samplers}
    for batch in BATCHES:
        runs = {name: _run(sampler, batch) for name, sampler in samplers.items()}
        for name, seconds in _in_turns(runs).items():
            found[name][str(batch)] = batch / median(seconds)
    return found


def fastest_session(path: Path) -> dict[str, Any]:
    """{"threads", "optimization"} with which a graph has the highest images/s, in the geometric mean over BATCHES."""
    threads = sorted({1, torch.get_num_threads()})
    candidates = list(product(threads, OPTIMIZATIONS[:2]))
    samplers = {f"{n} {level}": OnnxSampler(str(path), path.name, path, n, level) for n, level in candidates}
    rates = side_by_side(samplers)
    score = {name: sum(math.log(rate) for rate in found.values()) for name, found in rates.items()}
    best, level = max(score, key=lambda name: score[name]).split()
    return {"threads": int(best), "optimization": level, "images_per_second": rates}


def _run(sampler: Sampler, batch: int) -> Callable[[], float]:
    @torch.inference_mode()
    def run() -> float:
        noise, labels = BatchNoise(sampler.shape, batch, CPU), labels_for(sampler, 0, batch)
        started = time.perf_counter()
        sampler.sample(noise, labels)
        return time.perf_counter() - started

    return run


def _in_turns(runs: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each run.

    Before each turn there is a pause and a run that is not counted: the threads of the library whose turn was before
    go on spinning for a while, and on the same processors that would cost the next one up to half of its speed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS * len(runs) or len(next(iter(seconds.values()))) < FEWEST:
        for name, run in runs.items():
            time.sleep(PAUSE)
            run()
            seconds[name] += [run() for _ in range(RUNS)]
    return seconds
