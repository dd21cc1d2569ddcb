"""Timing: percentiles only where there are enough runs, turns, limits, batch sizes."""

import dataclasses
import time
from collections.abc import Sequence

import pytest
import torch

from fewstep.eval.speed import timing
from fewstep.eval.speed.energy import Meter
from fewstep.eval.speed.timing import KEYED_BATCH, THROUGHPUT_RUNS, Limits, latency_summary, measure

CPU = torch.device("cpu")
LIMITS = Limits(latency_runs=12, latency_seconds=5.0, batch_sizes=(2, 8), throughput_seconds=5.0)


@pytest.fixture(autouse=True)
def no_energy(monkeypatch):
    """No counters of energy, whatever this machine has: they would ask for more runs."""
    monkeypatch.setattr(timing, "energy_meter", lambda device: Meter(None, []))


class Sleeper:
    """A sampler that sleeps `nfe` times a fixed time and an equal time for each image."""

    label, kind, network_parameters = "Sleeper", "teacher", 1
    shape: tuple[int, int, int] = (1, 2, 2)
    num_classes: int | None = None
    schedule: Sequence[float] = ()

    def __init__(self, name: str, nfe: int, fixed=0.002, each=0.0, calls=None):
        self.name, self.nfe, self.fixed, self.each = name, nfe, fixed, each
        self.calls = [] if calls is None else calls

    def sample(self, noise, labels=None):
        x = noise.draw()
        self.calls.append((self.name, len(x)))
        time.sleep(self.nfe * (self.fixed + self.each * len(x)))
        return x


@pytest.mark.parametrize(("runs", "present"), [(9, ()), (10, ("p90",)), (99, ("p90",)), (100, ("p90", "p99"))])
def test_percentiles_are_left_out_below_ten_and_a_hundred_runs(runs, present):
    summary = latency_summary([0.001 * (i + 1) for i in range(runs)])
    assert summary["runs"] == runs
    assert summary["median"] == pytest.approx((runs + 1) / 2)
    assert {name for name in ("p90", "p99") if summary[name] is not None} == set(present)


def test_percentiles_are_the_values_that_few_runs_exceed():
    summary = latency_summary([0.001 * i for i in range(1, 101)])
    assert summary["p90"] == pytest.approx(90)
    assert summary["p99"] == pytest.approx(99)


def test_samplers_take_turns_and_are_warmed_up_first():
    calls = []
    measure([Sleeper("a", 1, calls=calls), Sleeper("b", 1, calls=calls)], CPU, LIMITS, set())
    single = [name for name, batch in calls if batch == 1]
    assert single == [*["a", "b"] * 13, "a"]  # one warm-up and twelve runs; one to count operations


def test_latency_stops_at_its_time_limit_for_the_slow_one_only():
    limits = Limits(latency_runs=12, latency_seconds=0.15, batch_sizes=(2,), throughput_seconds=5.0)
    fast, slow = measure([Sleeper("a", 1), Sleeper("b", 50)], CPU, limits, set())
    assert len(fast.latencies) == 12
    assert len(slow.latencies) <= 2  # 0.1 s or more each: the limit is passed by the second
    assert slow.to_json()["latency_ms"]["p90"] is None


def test_the_best_batch_size_is_found_and_a_slow_sampler_gets_one_that_fits():
    limits = Limits(latency_runs=1, latency_seconds=1.0, batch_sizes=(2, 8), throughput_seconds=0.2)
    fast, slow = measure([Sleeper("a", 1, 0.01, 0.005), Sleeper("b", 8, 0.01, 0.005)], CPU, limits, set())
    assert fast.batch == 8  # 50 ms for 8 images against 20 ms for 2
    assert slow.batch == 2  # 8 images would take 0.4 s
    result = fast.to_json()
    assert len(fast.seconds) == THROUGHPUT_RUNS
    assert 40 < result["throughput"]["images_per_second"] <= 8 / 0.05  # a sleep may be too long, never too short
    assert result["ms_per_image"] == pytest.approx(1000 / result["throughput"]["images_per_second"])
    assert result["peak_memory_mb"] is None


def test_a_keyed_sampler_is_run_once_on_the_noise_of_seed_zero():
    calls = []
    clock = measure([Sleeper("a", 1, calls=calls)], CPU, LIMITS, {"a"})[0]
    assert calls.count(("a", KEYED_BATCH)) == 1
    first = timing.KeyedNoise((1, 2, 2), 0, 0, KEYED_BATCH).draw()
    assert clock.images is not None
    assert torch.equal(clock.images, timing.to_uint8(first))


def test_timing_noise_is_standard_normal_and_moves_on():
    noise = timing.BatchNoise((1, 8, 8), 256, CPU)
    a, b = noise.draw(), noise.draw()
    assert a.shape == (256, 1, 8, 8)
    assert len(noise.generators) == 256
    assert not torch.equal(a, b)
    assert abs(a.std().item() - 1) < 0.03  # 16,384 values: the deviation is 0.0055


@pytest.mark.gpu
def test_peak_memory_is_measured_on_a_gpu():
    class Allocating(Sleeper):
        def sample(self, noise, labels=None):
            return noise.draw() + torch.zeros(len(noise.generators), 1, 2, 2, device="cuda")

    clock = measure([Allocating("a", 1)], torch.device("cuda"), LIMITS, set())[0]
    assert clock.peak_memory_mb is not None
    assert clock.peak_memory_mb > 0


class Multiplier(Sleeper):
    """A sampler that multiplies each 2x2 image `nfe` times by a 2x2 matrix: 16 operations each."""

    def sample(self, noise, labels=None):
        x = noise.draw()
        for _ in range(self.nfe):
            x = (x.flatten(0, 2) @ torch.eye(2)).view_as(x)
        return x


def test_operations_are_counted_with_the_fewest_evaluations_of_a_network_and_scaled():
    made = [Multiplier("a", 10), Multiplier("b", 2), Sleeper("c", 1)]
    made[2].kind = "export"
    few = dataclasses.replace(LIMITS, latency_runs=1, batch_sizes=(2,))
    flops = [clock.to_json()["flops_per_image"] for clock in measure(made, CPU, few, set())]
    assert flops == [160.0, 32.0, None]  # 2 x 2 x 2 x 2 a multiplication; nothing of torch's in the third
