"""Timing: percentiles only where there are enough runs, turns, limits, batch sizes."""

import dataclasses
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fewstep.eval.speed import timing
from fewstep.eval.speed.energy import Meter
from fewstep.eval.speed.timing import THROUGHPUT_RUNS, BatchNoise, Limits, latency_summary, measure

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
    networks: tuple[torch.nn.Module, ...] = ()

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
    summary = latency_summary([i + 1.0 for i in range(runs)])
    assert summary["runs"] == runs
    assert summary["median"] == pytest.approx((runs + 1) / 2)
    assert {name for name in ("p90", "p99") if summary[name] is not None} == set(present)


def test_percentiles_are_the_values_that_few_runs_exceed():
    summary = latency_summary([float(i) for i in range(1, 101)])
    assert summary["p90"] == pytest.approx(90)
    assert summary["p99"] == pytest.approx(99)


def test_samplers_take_turns_and_are_warmed_up_first():
    calls = []
    measure([Sleeper("a", 1, calls=calls), Sleeper("b", 1, calls=calls)], CPU, LIMITS)
    single = [name for name, batch in calls if batch == 1]
    # a warm-up, two runs to learn how long one takes, twelve in turns, one to count operations
    assert single == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 12 + ["a"]
    assert [name for name, batch in calls if batch == 8] == ["a", "a", *["a", "b"] * THROUGHPUT_RUNS]


def test_latency_stops_at_its_time_limit_for_the_slow_one_only():
    limits = Limits(latency_runs=12, latency_seconds=0.15, batch_sizes=(2,), throughput_seconds=5.0)
    fast, slow = measure([Sleeper("a", 1), Sleeper("b", 50)], CPU, limits)
    assert len(fast.single.seconds) == 12
    assert len(slow.single.seconds) <= 2  # 0.1 s or more each: the limit is passed by the second
    assert slow.to_json()["latency_ms"]["p90"] is None


def test_the_best_batch_size_is_found_once_for_a_network():
    limits = Limits(latency_runs=1, latency_seconds=1.0, batch_sizes=(2, 8), throughput_seconds=0.2)
    fast, slow = measure([Sleeper("a", 1, 0.01, 0.005), Sleeper("b", 8, 0.01, 0.005)], CPU, limits)
    assert fast.many.batch == slow.many.batch == 8  # 50 ms for 8 images against 20 ms for 2
    result = fast.to_json()
    assert [len(clock.many.seconds) for clock in (fast, slow)] == [THROUGHPUT_RUNS] * 2
    assert 40 < result["throughput"]["images_per_second"] <= 8 / 0.05  # a sleep may be too long, never too short
    assert result["ms_per_image"] == pytest.approx(1000 / result["throughput"]["images_per_second"])
    assert result["peak_memory_mb"] is None


class Network(torch.nn.Module):
    """Its evaluations take a given time by the batch size on a clock that nothing else moves."""

    def __init__(self, clock, cost):
        super().__init__()
        self.clock, self.cost, self.calls = clock, cost, 0
        self.weight = torch.nn.Parameter(torch.zeros(1000))

    def forward(self, x):
        clock: Any = self.clock
        clock.now += self.cost(len(x))
        self.calls += 1
        return x


class Evaluator(Sleeper):
    """A sampler of `nfe` evaluations of a network, after a start-up."""

    def __init__(self, name, nfe, network, startup=0.0, rows=1):
        super().__init__(name, nfe)
        self.networks, self.startup, self.rows = (network,), startup, rows
        self.clock = network.clock
        self.kind = name.partition("@")[0]

    def sample(self, noise, labels=None):
        x = noise.draw()
        self.clock.now += self.startup
        for _ in range(self.nfe // self.rows):
            self.networks[0](torch.cat([x] * self.rows))
        return x


@pytest.fixture
def clock(monkeypatch):
    """The time of the samplers' networks, 0 s at first."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


COSTS = [
    (lambda batch: 0.003 + 0.0001 * batch, 256),
    (lambda batch: 0.003 + 0.0001 * batch * (4 if batch > 64 else 1), 64),
    (lambda batch: 0.001 * batch * (2 if batch > 1 else 1), 1),
    (lambda batch: 2.0 + 0.1 * batch, 64),  # of 256, one evaluation would be longer than the limit
]


@pytest.mark.parametrize(("cost", "best"), COSTS)
def test_speedup_is_no_larger_than_the_ratio_of_evaluations(clock, cost, best):
    """The same network a thousand times and once: equal terms give a thousand, whatever batch is best."""
    limits = Limits(latency_runs=100, latency_seconds=10.0, batch_sizes=(1, 16, 64, 256), throughput_seconds=20.0)
    teacher, student = Network(clock, cost), Network(clock, cost)
    made = [("teacher@ddpm:1000", 1000, teacher), ("teacher@ddim:50", 50, teacher, 0.001), ("student@1", 1, student)]
    ddpm, ddim, one = measure([Evaluator(*each) for each in made], CPU, limits)
    assert [each.many.batch for each in (ddpm, ddim, one)] == [best] * 3
    assert ddpm.to_json()["ms_per_image"] / one.to_json()["ms_per_image"] == pytest.approx(1000)
    assert ddpm.to_json()["ms_per_image"] == pytest.approx(1e6 * cost(best) / best)
    assert {len(each.many.seconds) for each in (ddpm, ddim, one)} == {THROUGHPUT_RUNS}
    assert ddpm.to_json()["latency_ms"]["median"] == pytest.approx(1e6 * cost(1))


def test_a_long_sampler_is_timed_over_a_stretch_and_its_result_says_so(clock):
    limits = Limits(latency_runs=100, latency_seconds=10.0, batch_sizes=(1, 16), throughput_seconds=20.0)
    network = Network(clock, lambda batch: 0.01 + 0.01 * batch)
    ddpm, short = (
        each.to_json()
        for each in measure(
            [Evaluator("teacher@ddpm:1000", 1000, network, 5.0), Evaluator("teacher@ddim:10", 10, network)], CPU, limits
        )
    )
    assert ddpm["throughput"] == {
        "images_per_second": pytest.approx(16 / 170),  # 1000 evaluations of 0.17 s; the start-up is not theirs
        "batch_size": 16,
        "runs": 3,
        "evaluations_timed": 39,  # 3 x 39 x 0.17 s are 20 s
    }
    latency = ddpm["latency_ms"]
    assert (latency["evaluations_timed"], latency["median"]) == (41, pytest.approx(20_000))
    assert latency["runs"] >= 10
    assert latency["p90"] == pytest.approx(20_000)
    assert (short["throughput"]["evaluations_timed"], short["latency_ms"]["evaluations_timed"]) == (10, 10)
    assert network.calls < 1500  # a whole run of DDPM is a thousand
    assert not network._forward_pre_hooks


def test_rows_of_a_doubled_batch_count_as_evaluations(clock):
    """Guidance: a call of two rows an image is two evaluations, in what is timed as in `nfe`."""
    limits = Limits(latency_runs=1, latency_seconds=1.0, batch_sizes=(4,), throughput_seconds=3.1)
    guided = Evaluator("teacher@ddim:50", 100, Network(clock, lambda batch: 0.01 * batch), rows=2)
    timed = measure([guided], CPU, limits)[0].to_json()
    assert timed["throughput"]["evaluations_timed"] == 26  # 25 would be a second; calls come in twos
    assert timed["ms_per_image"] == pytest.approx(1000)


def test_times_are_corrected_by_the_pace_of_the_anchor(clock):
    sampler = Evaluator("student@1", 1, Network(clock, lambda batch: 0.5))
    limits = Limits(latency_runs=1, latency_seconds=1.0, batch_sizes=(4,), throughput_seconds=9.0)
    made = measure([sampler], CPU, limits)[0]
    timed = made.to_json({"anchor": "teacher@ddim:50", "factor": 0.8})
    assert (timed["ms_per_image"], timed["latency_ms"]["median"]) == (pytest.approx(100), pytest.approx(400))
    assert timed["throughput"]["images_per_second"] == pytest.approx(10)
    assert timed["pace"] == {"anchor": "teacher@ddim:50", "factor": 0.8}
    assert made.to_json()["pace"] is None


def test_peak_memory_is_of_the_measured_model_alone(clock, monkeypatch):
    """1 GB of other models is there before the run; the run itself takes 10 MB more, the weights are 4,000 bytes."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10**9 + 10 * 2**20)
    monkeypatch.setattr(timing, "synchronise", lambda device: None)
    monkeypatch.setattr(timing, "BatchNoise", lambda shape, batch, device: BatchNoise(shape, batch, CPU))
    sampler = Evaluator("student@1", 1, Network(clock, lambda batch: 0.5))
    limits = Limits(latency_runs=1, latency_seconds=1.0, batch_sizes=(4,), throughput_seconds=9.0)
    made = measure([sampler], torch.device("cuda"), limits)[0]
    assert made.peak_memory_mb == pytest.approx(10 + 4000 / 2**20)


def test_timing_noise_is_standard_normal_and_moves_on():
    noise = BatchNoise((1, 8, 8), 256, CPU)
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

    clock = measure([Allocating("a", 1)], torch.device("cuda"), LIMITS)[0]
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
    made[2].network_parameters = 2
    few = dataclasses.replace(LIMITS, latency_runs=1, batch_sizes=(2,))
    flops = [clock.to_json()["flops_per_image"] for clock in measure(made, CPU, few)]
    assert flops == [160.0, 32.0, None]  # 2 x 2 x 2 x 2 a multiplication; nothing of torch's in the third
