"""Energy where a device counts it: joules between two moments.

A GPU's is NVIDIA's counter of its total energy (NVML, nvmlDeviceGetTotalEnergyConsumption, mJ since the driver was
loaded), read with the `pynvml` of nvidia-ml-py where that is installed. A processor's is the sum of its packages' in
Linux powercap (RAPL, `intel-rapl:N/energy_uj`, which AMD's processors have too), where the system lets us read them.
Both count all that the device does in that time, other programs' work and idling included. They are renewed every
millisecond (RAPL) to tenth of a second (NVML), so that a shorter time than METERED_SECONDS says little.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

METERED_SECONDS = 2.0
POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Joules from call to call of `lap`.

    counters: (read, wrap): a function that returns a counter's joules, and the joules at which it begins anew at 0
    (None: it does not). source: which counters these are, None where there are none.
    """

    def __init__(self, source: str | None, counters: Sequence[tuple[Callable[[], float], float | None]]) -> None:
        self.source, self._counters = source, counters
        self._last = self._read()

    def lap(self) -> float | None:
        """Joules since the last call, or since the meter was made; None where the device does not say."""
        before, self._last = self._last, self._read()
        if not before or not self._last:
            return None
        used = zip(before, self._last, self._counters, strict=True)
        return sum(now - then if wrap is None else (now - then) % wrap for then, now, (_, wrap) in used)

    def _read(self) -> list[float] | None:
        try:
            return [read() for read, _ in self._counters]
        except Exception:  # a file that cannot be read any more, or NVML's error, whose class is in an optional library
            return None


def energy_meter(device: torch.device, powercap: Path = POWERCAP) -> Meter:
    """The meter of a device; its `source` is None, and every lap, where the device reports nothing to us."""
    found = _nvml(device) if device.type == "cuda" else _rapl(powercap) if device.type == "cpu" else None
    return Meter(None, []) if found is None or found.lap() is None else found


def _nvml(device: torch.device) -> Meter | None:
    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:  # not installed, no driver, or a part of a GPU: NVML's errors share no base with Python's own
        return None
    return Meter("NVML, the whole GPU", [(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, None)])


def _rapl(powercap: Path) -> Meter | None:
    """The packages' counters; their parts (`intel-rapl:0:0`) and the whole board's (`psys`) are left out."""
    try:
        zones = sorted(zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1)
        packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        counters = [(_micro(zone / "energy_uj"), _micro(zone / "max_energy_range_uj")()) for zone in packages]
    except (OSError, ValueError):
        return None
    return Meter(f"RAPL, {len(counters)} processor packages", counters) if counters else None


def _micro(path: Path) -> Callable[[], float]:
    """A function that reads a file with a number of microjoules, in joules."""
    return lambda: int(path.read_text()) / 1e6
