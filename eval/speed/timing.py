"""Time: noise in, finished float images out, on the device.

Loading and compiling are not in it. Each sampler is warmed up, the device is synchronised before and after
each run, and the samplers take turns (A B A B), so that a machine that grows slower does so for all of them. All get
the same number of runs at the same batch sizes: of one that is too long, each run is a stretch of its network
evaluations, from the start of the first one, and the time of all of them follows from it.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.eval.images import labels_for
from fewstep.eval.interfaces import Sampler
from fewstep.eval.speed.energy import METERED_SECONDS, energy_meter
from fewstep.eval.speed.evaluations import each_evaluation

LATENCY_RUNS = 12  # at batch 1 of a sampler too long to be timed whole: p90 takes 10
THROUGHPUT_RUNS = 3
PROBE_EVALUATIONS = 2  # most evaluations of a run that only finds out how long others would take


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to measure.

    latency_runs: most runs at batch 1. latency_seconds: most seconds of them for one sampler, one run at
    least. batch_sizes: tried for throughput. throughput_seconds: most seconds of throughput runs for one
    sampler, each one evaluation at least.
    """

    latency_runs: int
    latency_seconds: float
    batch_sizes: tuple[int, ...]
    throughput_seconds: float


class BatchNoise:
    """A Noise for timing: one generator for the whole batch, on the device.

    One generator per image is how we make images comparable; nobody who samples pays for it.
    """

    def __init__(self, shape: tuple[int, int, int], batch: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.generators: Sequence[torch.Generator] = [generator] * batch
        self.shape = (batch, *shape)

    def draw(self) -> Tensor:
        """[B, C, H, W] float32 on the device."""
        generator = self.generators[0]
        return torch.randn(self.shape, generator=generator, device=generator.device)


@dataclass
class Runs:
    """Runs of one batch size: seconds of each as of a whole run, and the evaluations that are timed of it."""

    batch: int
    evaluations: int
    seconds: list[float] = field(default_factory=list)


class Clock:
    """One sampler's measurements: runs at batch 1 and at the best batch size, and what else `to_json` tells."""

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, getattr(sampler, "device", device)
        self.single, self.many = Runs(1, sampler.nfe), Runs(1, sampler.nfe)
        self.warmup = 0.0
        self.peak_memory_mb: float | None = None
        self.flops: float | None = None  # of one image; None where they are not torch's
        self.joules: float | None = None  # of one image; None where the device does not count them
        self.energy_source: str | None = None

    def run(self, runs: Runs) -> float:
        """One more of these runs; its own seconds, which are not those of a whole run where it is a stretch."""
        seconds, runs.evaluations = _timed(self, runs.batch, runs.evaluations)
        runs.seconds.append(seconds * self.sampler.nfe / runs.evaluations)
        return seconds

    def pace(self, batch: int) -> float:
        """Seconds of one evaluation at a batch size, the better of two short runs."""
        short = (_timed(self, batch, PROBE_EVALUATIONS) for _ in range(2))
        return min(seconds / evaluations for seconds, evaluations in short)

    def to_json(self, pace: dict[str, Any] | None = None) -> dict[str, Any]:
        """The "timing" part of a sampler's result file.

        pace: {"anchor": the name of a sampler whose time is kept from earlier, "factor": that time by its time now}.
        """
        factor = 1000 if pace is None else 1000 * pace["factor"]
        latency = latency_summary([factor * seconds for seconds in self.single.seconds])
        ms = factor * statistics.median(self.many.seconds) / self.many.batch
        return {
            "latency_ms": latency | {"evaluations_timed": self.single.evaluations},
            "throughput": {
                "images_per_second": 1000 / ms,
                "batch_size": self.many.batch,
                "runs": len(self.many.seconds),
                "evaluations_timed": self.many.evaluations,
            },
            "ms_per_image": ms,
            "pace": pace,
            "peak_memory_mb": self.peak_memory_mb,
            "flops_per_image": self.flops,
            "joules_per_image": self.joules,
            "energy_source": self.energy_source,
            "warmup_s": self.warmup,
        }


def latency_summary(ms: Sequence[float]) -> dict[str, Any]:
    """Median, p90 from 10 runs on, p99 from 100 runs on; fewer runs: None, not a guess."""
    p90, p99 = np.percentile(ms, (90, 99), method="inverted_cdf").tolist()
    runs = len(ms)
    enough = {"p90": p90 if runs >= 10 else None, "p99": p99 if runs >= 100 else None}
    return {"median": statistics.median(ms), **enough, "runs": runs}


def measure(samplers: Sequence[Sampler], device: torch.device, limits: Limits) -> list[Clock]:
    """Time every sampler: latency at batch 1, then throughput at its network's best batch size."""
    clocks = [Clock(sampler, device) for sampler in samplers]
    _latency(clocks, limits)
    _choose_batches(clocks, limits)
    _throughput(clocks)
    _meter(clocks)
    _count_flops(clocks)
    return clocks


def _latency(clocks: list[Clock], limits: Limits) -> None:
    spent = dict.fromkeys(clocks, 0.0)
    for clock in clocks:
        clock.warmup = _timed(clock, 1, PROBE_EVALUATIONS)[0]
        clock.single.evaluations = _affordable(clock, clock.pace(1), limits.latency_seconds / LATENCY_RUNS)
    for _ in range(limits.latency_runs):
        for clock in clocks:
            if spent[clock] < limits.latency_seconds:
                spent[clock] += clock.run(clock.single)


def _affordable(clock: Clock, pace: float, seconds: float) -> int:
    """How many evaluations a run can have in so many seconds, one at least, all at most."""
    return min(clock.sampler.nfe, max(1, int(seconds / pace)))


def _choose_batches(clocks: list[Clock], limits: Limits) -> None:
    """The best batch size of each network, which hardly depends on the solver, and how much of a run to time there."""
    seconds = limits.throughput_seconds / THROUGHPUT_RUNS
    for group in _by_network(clocks):
        paces = _probe(group[0], limits.batch_sizes, seconds)
        best = min(paces, key=lambda batch: paces[batch] / batch)
        for clock in group:
            clock.many.batch = best
            clock.many.evaluations = _affordable(clock, paces[best], seconds)


def _probe(clock: Clock, batch_sizes: Sequence[int], most: float) -> dict[int, float]:
    """Seconds of one evaluation at each batch size, up to the first that takes too long or does not fit."""
    paces: dict[int, float] = {}
    for batch in sorted(batch_sizes):
        try:
            paces[batch] = clock.pace(batch)
        except torch.OutOfMemoryError:
            if not paces:
                raise
            break
        if paces[batch] > most:
            break
    return paces


def _by_network(clocks: list[Clock]) -> list[list[Clock]]:
    """The clocks of each network in each way of running it, that of fewest evaluations first."""
    networks = defaultdict[tuple[object, ...], list[Clock]](list)
    for clock in sorted(clocks, key=lambda clock: clock.sampler.nfe):
        sampler = clock.sampler
        networks[type(sampler), clock.device, sampler.shape, sampler.network_parameters].append(clock)
    return list(networks.values())


def _throughput(clocks: list[Clock]) -> None:
    for _ in range(THROUGHPUT_RUNS):
        for clock in clocks:
            if clock.device.type != "cuda":
                clock.run(clock.many)
                continue
            own = torch.nn.ModuleList(clock.sampler.networks)
            own_bytes = sum(weight.nbytes for weight in (*own.parameters(), *own.buffers()))
            others = torch.cuda.memory_allocated(clock.device) - own_bytes
            torch.cuda.reset_peak_memory_stats(clock.device)
            clock.run(clock.many)
            peak = (torch.cuda.max_memory_allocated(clock.device) - others) / 2**20
            whole = clock.many.evaluations == clock.sampler.nfe or len(clock.sampler.networks) == 1
            clock.peak_memory_mb = peak if whole else None  # a stretch ends before a decoder takes its memory


def _meter(clocks: list[Clock]) -> None:
    """The energy of runs in a row that are long enough for the counters."""
    for clock in clocks:
        meter, spent, images = energy_meter(clock.device), 0.0, 0.0
        while meter.source is not None and spent < METERED_SECONDS:
            seconds, evaluations = _timed(clock, clock.many.batch, clock.many.evaluations)
            spent, images = spent + seconds, images + clock.many.batch * evaluations / clock.sampler.nfe
        joules = meter.lap()
        if images and joules is not None:
            clock.joules, clock.energy_source = joules / images, meter.source


def _count_flops(clocks: list[Clock]) -> None:
    """Floating-point operations of one image, from a few evaluations of each network."""
    for group in _by_network(clocks):
        with FlopCounterMode(display=False) as counter:
            evaluations = _timed(group[0], 1, PROBE_EVALUATIONS)[1]
        for clock in group:
            clock.flops = counter.get_total_flops() * clock.sampler.nfe / evaluations or None


class _Enough(BaseException):
    """A run has had the evaluations that were asked for; no handler of errors on the way may take it for one."""


@torch.inference_mode()
def _timed(clock: Clock, batch: int, evaluations: int) -> tuple[float, int]:
    """Seconds of one run and its evaluations: all, or as many as asked for, from the start of the first one.

    A sampler that holds no network that torch calls is run whole.
    """
    sampler, device, done = clock.sampler, clock.device, 0
    noise = BatchNoise(sampler.shape, batch, device)

    def note(rows: int) -> None:
        nonlocal start, done
        if done == 0:
            synchronise(device)
            start = time.perf_counter()
        elif done >= evaluations * batch:
            raise _Enough
        done += rows

    stretch = evaluations < sampler.nfe and len(sampler.networks) > 0
    synchronise(device)
    start = time.perf_counter()
    with each_evaluation(sampler.networks[0], note) if stretch else nullcontext(), suppress(_Enough):
        sampler.sample(noise, labels_for(sampler, 0, batch))
    synchronise(device)
    return time.perf_counter() - start, done // batch if stretch else sampler.nfe


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
