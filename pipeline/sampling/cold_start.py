"""From nothing to the first image, measured in a process of its own, in which nothing is warm.

python -m fewstep.pipeline.sampling.cold_start SUBJECT DEVICE [--trust] prints one line of JSON, all in seconds:

import_s        importing what opening a subject needs: torch, diffusers and ours
load_s          opening the subject: reading its files, its weights to the device. Where that calls the model, as it
                does to count a pipeline's evaluations and to check an exported graph's output, the calls are in it
first_image_s   the first image asked for after that, to its end on the device

Neither the interpreter's own start nor hashing the files is in any of them, except that a .pt2 of our own is hashed
before it is opened. Files may lie in the system's cache: with a disk to read from, the first start after boot takes
longer.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.eval.quality.protocol import slug
from fewstep.files import read_sealed, sealed, write_json
from fewstep.progress import say

KEYS = ("import_s", "load_s", "first_image_s")
SECONDS = 600.0  # a start that takes longer is not waited for


def add_cold_starts(folder: Path, subjects: Mapping[str, str], device: object, *, trust: bool = False) -> None:
    """Measure the cold start of subjects, by sampler name, and put it into their result files in a benchmark's folder.

    What an earlier call measured is kept. Where the measurement fails, "cold_start" is null and a line says why.
    """
    missing = {folder / "samplers" / f"{slug(name)}.json": text for name, text in subjects.items()}
    missing = {path: text for path, text in missing.items() if read_sealed(path).get("cold_start") is None}
    if missing:
        say(f"  Cold start of {len(missing)} models, each in a new process")
    for path, text in missing.items():
        found = cold_start(text, str(device), trust=trust)
        write_json(path, sealed(read_sealed(path) | {"cold_start": found}))
        if found:
            say(f"  {text}: " + ", ".join(f"{key.removesuffix('_s')} {found[key]:.2f} s" for key in KEYS))


def cold_start(text: str, device: str, seconds: float = SECONDS, *, trust: bool = False) -> dict[str, float] | None:
    """{"import_s", "load_s", "first_image_s"} of a subject that this process has opened before, None where it fails.

    The new process does not outlive the call, whatever ends it: a signal, an error, `seconds`.
    """
    command = [sys.executable, "-P", "-m", __spec__.name, text, device, *(["--trust"] if trust else [])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # a hub id is in the cache by now: no download in load_s
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return _failed(text, f"it took longer than {seconds:g} s")
        finally:
            process.kill()
    try:
        found = json.loads(out.splitlines()[-1])
        return {key: float(found[key]) for key in KEYS}
    except (ValueError, LookupError, TypeError):
        return _failed(text, next(iter(err.strip().splitlines()[-1:]), f"exit code {process.returncode}")[:200])


def _failed(text: str, why: str) -> None:
    say(f"  warning: the cold start of {text} was not measured: {why}")


def main(arguments: Sequence[str]) -> None:
    """Measure this process; it must have imported nothing yet."""
    text, name, *trust = arguments
    moments = [time.perf_counter()]
    import torch

    from fewstep.eval.images import StoredImages, labels_for
    from fewstep.eval.speed.timing import BatchNoise, synchronise
    from fewstep.pipeline.sampling.subjects import open_subject

    moments.append(time.perf_counter())
    device = torch.device(name)
    sampler: Any = open_subject(text, device, trust=trust == ["--trust"])[0]
    if isinstance(sampler, StoredImages):
        raise SystemExit(f"{text}: images that are there already have no start")
    synchronise(device)
    moments.append(time.perf_counter())
    with torch.inference_mode():
        sampler.sample(BatchNoise(sampler.shape, 1, device), labels_for(sampler, 0, 1))
    synchronise(device)
    moments.append(time.perf_counter())
    steps = zip(KEYS, pairwise(moments), strict=True)
    print(json.dumps({key: after - before for key, (before, after) in steps}))


if __name__ == "__main__":
    main(sys.argv[1:])
