"""Time: noise in, finished float images out, on the device.

Loading and compiling are not in it. Each sampler is warmed up, the device is synchronised before and after
each run, and the samplers take turns (A B A B), so that a machine that grows slower does so for all of them.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.eval.images import labels_for, to_uint8
from fewstep.eval.interfaces import Noise, Sampler
from fewstep.eval.noise import KeyedNoise
from fewstep.eval.speed.energy import METERED_SECONDS, Meter, energy_meter

THROUGHPUT_RUNS = 3
KEYED_BATCH = 64  # images of the run of a sampler that is timed on one batch only


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to measure.

    latency_runs: most runs at batch 1. latency_seconds: most seconds of them for one sampler, one run at
    least. batch_sizes: tried for throughput. throughput_seconds: most seconds of throughput runs for one
    sampler.
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
class Clock:
    """One sampler's measurements, in seconds.

    `flops` are those of one image, None where they are not torch's; `energy` joules and images of throughput runs, none
    where the device does not count them; `images` uint8 of a sampler timed on one keyed batch.
    """

    sampler: Sampler
    meter: Meter
    warmup: float = 0.0
    latencies: list[float] = field(default_factory=list)
    batch: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_memory_mb: float | None = None
    flops: float | None = None
    energy: list[tuple[float, int]] = field(default_factory=list)
    images: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """The "timing" part of a sampler's result file."""
        joules, metered = (sum(column) for column in zip((0.0, 0), *self.energy, strict=True))
        rate = self.batch / statistics.median(self.seconds)
        return {
            "latency_ms": latency_summary(self.latencies),
            "throughput": {"images_per_second": rate, "batch_size": self.batch, "runs": len(self.seconds)},
            "ms_per_image": 1000 / rate,
            "peak_memory_mb": self.peak_memory_mb,
            "flops_per_image": self.flops,
            "joules_per_image": joules / metered if metered else None,
            "energy_source": self.meter.source if metered else None,
            "warmup_s": self.warmup,
        }


def latency_summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median in ms, p90 from 10 runs on, p99 from 100 runs on; fewer runs: None, not a guess."""
    ordered = sorted(1000 * value for value in seconds)
    runs = len(ordered)

    def percentile(percent: int, least: int) -> float | None:
        return ordered[math.ceil(runs * percent / 100) - 1] if runs >= least else None

    return {
        "median": statistics.median(ordered),
        "p90": percentile(90, 10),
        "p99": percentile(99, 100),
        "runs": runs,
    }


def measure(samplers: Sequence[Sampler], device: torch.device, limits: Limits, keyed: set[str]) -> list[Clock]:
    """Time every sampler: latency at batch 1, then throughput.

    Samplers named in `keyed` are too slow for more: one throughput run of 64 images, made from the keyed
    noise of seed 0 so that they serve as sample images too.
    """
    clocks = [Clock(sampler, energy_meter(getattr(sampler, "device", device))) for sampler in samplers]
    _latency(clocks, device, limits)
    _choose_batches(clocks, device, limits, keyed)
    _throughput(clocks, device, limits, keyed)
    _meter_short(clocks, device)
    _count_flops(clocks, device)
    return clocks


def _latency(clocks: list[Clock], device: torch.device, limits: Limits) -> None:
    for clock in clocks:
        clock.warmup = _timed(clock.sampler, BatchNoise(clock.sampler.shape, 1, device), device)[0]
    waiting = clocks
    while waiting:
        for clock in waiting:
            noise = BatchNoise(clock.sampler.shape, 1, device)
            clock.latencies.append(_timed(clock.sampler, noise, device)[0])
        waiting = [
            clock
            for clock in waiting
            if len(clock.latencies) < limits.latency_runs and sum(clock.latencies) < limits.latency_seconds
        ]


def _choose_batches(clocks: list[Clock], device: torch.device, limits: Limits, keyed: set[str]) -> None:
    """The best batch size of each network, found with the sampler of fewest evaluations.

    A sampler for which one run at that size would take longer than throughput_seconds gets the largest listed
    size that does not, or the smallest listed one.
    """
    for probe, group in _by_network(clocks):
        seconds = _probe(probe, device, limits)
        best = min(seconds, key=lambda batch: seconds[batch] / batch)
        for clock in group:
            cost = {batch: seconds[batch] * clock.sampler.nfe / probe.nfe for batch in seconds if batch <= best}
            fits = [batch for batch in cost if cost[batch] <= limits.throughput_seconds]
            clock.batch = KEYED_BATCH if clock.sampler.name in keyed else max(fits, default=min(seconds))


def _count_flops(clocks: list[Clock], device: torch.device) -> None:
    """Floating-point operations of one image, counted with the sampler of fewest evaluations of each network."""
    for probe, group in _by_network(clocks):
        with FlopCounterMode(display=False) as counter:
            _timed(probe, BatchNoise(probe.shape, 1, device), device)
        for clock in group:
            clock.flops = counter.get_total_flops() * clock.sampler.nfe / probe.nfe or None


def _by_network(clocks: list[Clock]) -> list[tuple[Sampler, list[Clock]]]:
    """The clocks of each network, with its sampler of fewest evaluations."""
    networks: dict[tuple[str, int], list[Clock]] = {}
    for clock in clocks:
        networks.setdefault((clock.sampler.kind, clock.sampler.network_parameters), []).append(clock)
    return [
        (min((clock.sampler for clock in group), key=lambda sampler: sampler.nfe), group) for group in networks.values()
    ]


def _probe(sampler: Sampler, device: torch.device, limits: Limits) -> dict[int, float]:
    """Seconds of one run at each batch size, up to the first that takes too long or does not fit."""
    seconds: dict[int, float] = {}
    for batch in sorted(limits.batch_sizes):
        try:
            first = _timed(sampler, BatchNoise(sampler.shape, batch, device), device)[0]
            again = _timed(sampler, BatchNoise(sampler.shape, batch, device), device)[0]
        except torch.OutOfMemoryError:
            if not seconds:
                raise
            break
        seconds[batch] = min(first, again)
        if seconds[batch] > limits.throughput_seconds:
            break
    return seconds


def _throughput(clocks: list[Clock], device: torch.device, limits: Limits, keyed: set[str]) -> None:
    waiting = clocks
    while waiting:
        for clock in waiting:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            sampler, alone = clock.sampler, clock.sampler.name in keyed
            noise = (
                KeyedNoise(sampler.shape, 0, 0, clock.batch)
                if alone
                else BatchNoise(sampler.shape, clock.batch, device)
            )
            clock.meter.lap()
            seconds, x = _timed(sampler, noise, device)
            if seconds >= METERED_SECONDS:
                _note_energy(clock, clock.batch)
            clock.seconds.append(seconds)
            if device.type == "cuda":
                clock.peak_memory_mb = torch.cuda.max_memory_allocated(device) / 2**20
            if alone:
                clock.images = to_uint8(x).cpu()
        waiting = [
            clock
            for clock in waiting
            if clock.images is None
            and len(clock.seconds) < THROUGHPUT_RUNS
            and sum(clock.seconds) + clock.seconds[-1] <= limits.throughput_seconds
        ]


def _meter_short(clocks: list[Clock], device: torch.device) -> None:
    """The energy of samplers whose throughput runs are too short for the counters: of more such runs in a row."""
    for clock in clocks:
        if clock.meter.source is None or clock.energy:
            continue
        clock.meter.lap()
        seconds = [0.0]
        while sum(seconds) < METERED_SECONDS:
            noise = BatchNoise(clock.sampler.shape, clock.batch, device)
            seconds.append(_timed(clock.sampler, noise, device)[0])
        _note_energy(clock, clock.batch * (len(seconds) - 1))


def _note_energy(clock: Clock, images: int) -> None:
    joules = clock.meter.lap()
    if joules is not None:
        clock.energy.append((joules, images))


@torch.inference_mode()
def _timed(sampler: Sampler, noise: Noise, device: torch.device) -> tuple[float, Tensor]:
    """Seconds of one run and its images."""
    labels = labels_for(sampler, 0, len(noise.generators))
    synchronise(device)
    start = time.perf_counter()
    x = sampler.sample(noise, labels)
    synchronise(device)
    return time.perf_counter() - start, x


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
