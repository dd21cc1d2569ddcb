"""Where a number was measured: device, processor, threads, versions."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Device and processor names, threads and versions, for benchmark.json."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "torch_fidelity": version("torch-fidelity"),
        "fewstep": version("fewstep"),
        "platform": platform.platform(),
    }


def _processor() -> str:
    """The processor's model name from /proc/cpuinfo; the architecture where there is no such file or line."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*\S)", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
    return found[1] if found else platform.machine()
