"""Energy: the counters of a made-up machine, their beginning anew, and None where nothing is reported."""

import dataclasses
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from fewstep.eval.speed import timing
from fewstep.eval.speed.energy import Meter, energy_meter
from fewstep.eval.speed.timing import Limits, measure

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LIMITS = Limits(latency_runs=1, latency_seconds=1.0, batch_sizes=(4,), throughput_seconds=5.0)


@pytest.fixture
def powercap(tmp_path):
    """Two packages, a part of the first, the board and another driver's zone, as Linux shows them."""
    zones = {"0": "package-0", "1": "package-1", "0:0": "core", "2": "psys"}
    for index, (zone, name) in enumerate(zones.items()):
        write(tmp_path, zone, name=name, energy_uj=1_000_000 * index, max_energy_range_uj=100_000_000)
    (tmp_path / "intel-rapl").mkdir()
    (tmp_path / "intel-rapl-mmio:0").mkdir()
    return tmp_path


def write(powercap, zone, **files):
    folder = powercap / f"intel-rapl:{zone}"
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def test_packages_are_summed_and_their_parts_are_not(powercap):
    meter = energy_meter(CPU, powercap)
    assert meter.source == "RAPL, 2 processor packages"
    write(powercap, "0", energy_uj=2_500_000)
    write(powercap, "0:0", energy_uj=90_000_000)
    write(powercap, "2", energy_uj=90_000_000)
    assert meter.lap() == pytest.approx(2.5)
    write(powercap, "1", energy_uj=1_250_000)
    assert meter.lap() == pytest.approx(0.25)
    assert meter.lap() == 0


def test_a_counter_that_began_anew_is_not_negative(powercap):
    write(powercap, "1", energy_uj=99_000_000)
    meter = energy_meter(CPU, powercap)
    write(powercap, "1", energy_uj=3_000_000)
    assert meter.lap() == pytest.approx(4)


def test_counters_that_are_absent_or_cannot_be_read_are_none(powercap, tmp_path):
    for device, folder in ((CPU, tmp_path / "none"), (torch.device("meta"), powercap)):
        meter = energy_meter(device, folder)
        assert (meter.source, meter.lap()) == (None, None)
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    (powercap / "intel-rapl:1" / "energy_uj").mkdir()  # not readable, whoever runs this
    assert energy_meter(CPU, powercap).source is None
    write(powercap, "0", max_energy_range_uj="x")
    assert energy_meter(CPU, powercap).source is None


def test_a_counter_that_stops_being_readable_is_none_from_then_on(powercap):
    meter = energy_meter(CPU, powercap)
    write(powercap, "0", energy_uj="gone")
    assert meter.lap() is None
    write(powercap, "0", energy_uj=1)
    assert meter.lap() is None
    assert meter.lap() == 0


@pytest.fixture
def nvml(monkeypatch):
    """A pynvml of one GPU whose counter is `energy`, in mJ."""
    module = SimpleNamespace(energy=5_000, asked=[])
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: module.asked.append(uuid) or "handle"
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: module.energy
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    return module


def test_a_gpu_is_read_by_its_own_identity(nvml):
    meter = energy_meter(GPU)
    assert (meter.source, nvml.asked) == ("NVML, the whole GPU", ["GPU-1-2"])
    nvml.energy += 7_250
    assert meter.lap() == pytest.approx(7.25)


@pytest.mark.parametrize("missing", ["library", "driver", "counter"])
def test_a_gpu_without_library_driver_or_counter_reports_none(nvml, monkeypatch, missing):
    def fails(*_):
        raise Exception("NVMLError_NotSupported")

    if missing == "library":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    setattr(nvml, {"driver": "nvmlInit"}.get(missing, "nvmlDeviceGetTotalEnergyConsumption"), fails)
    meter = energy_meter(GPU)
    assert (meter.source, meter.lap()) == (None, None)


class Sampler:
    """Sleeps, and counts the images that it made."""

    name = label = "a"
    kind, nfe, networks, network_parameters, schedule = "teacher", 1, (), 1, ()
    shape: tuple[int, int, int] = (1, 2, 2)
    num_classes: int | None = None
    made = 0

    def __init__(self, seconds):
        self.seconds = seconds

    def sample(self, noise, labels=None):
        time.sleep(self.seconds)
        Sampler.made += len(noise.generators)
        return noise.draw()


@pytest.mark.parametrize("seconds", [0.001, 0.06])
def test_joules_of_an_image_are_of_throughput_runs_long_enough_to_count(monkeypatch, seconds):
    """One joule for each image that is made: exact, whether a run is long enough alone or several are needed."""
    monkeypatch.setattr(timing, "METERED_SECONDS", 0.05)
    monkeypatch.setattr(timing, "energy_meter", lambda device: Meter("images", [(lambda: float(Sampler.made), None)]))
    made = measure([Sampler(seconds)], CPU, LIMITS)[0].to_json()
    assert (made["joules_per_image"], made["energy_source"]) == (1.0, "images")


def test_nothing_is_measured_where_nothing_is_reported(monkeypatch):
    monkeypatch.setattr(timing, "energy_meter", lambda device: Meter(None, []))
    before = Sampler.made
    made = measure([Sampler(0.0)], CPU, dataclasses.replace(LIMITS, batch_sizes=(4,)))[0].to_json()
    assert (made["joules_per_image"], made["energy_source"]) == (None, None)
    assert (
        Sampler.made - before == 1 + 2 + 1 + 2 * 4 + 3 * 4 + 1
    )  # warm-up, pace, latency, probe, throughput, operations


@pytest.mark.gpu
def test_a_real_gpu_counts_or_says_none():
    meter = energy_meter(torch.device("cuda"))
    time.sleep(0.3)
    joules = meter.lap()
    assert (joules is None) == (meter.source is None)
    assert joules is None or 0.3 < joules < 1000  # an idle GPU draws watts
