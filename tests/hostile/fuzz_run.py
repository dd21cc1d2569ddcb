"""Fuzz one target under coverage: python tests/hostile/fuzz_run.py TARGET [SECONDS] (atheris, of the extra `fuzz`).

An input may cost a UserError. Anything else ends the fuzzing and leaves the input in build/fuzz/TARGET: put it into
tests/hostile/corpus.json, from which the default tests replay every input.
"""

import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")  # an extra, without types

with atheris.instrument_imports(include=["fewstep", "yaml", "zipfile", "json", "PIL", "pydantic", "numpy.lib"]):
    import fuzz

    from fewstep.errors import UserError


def main(name: str, seconds: int = 60) -> None:
    """Fuzz for so many seconds; libFuzzer prints executions and coverage as it goes."""
    found = Path("build/fuzz") / name
    seeds = found / "corpus"
    seeds.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate([*fuzz.sound()[name], *fuzz.corpus().get(name, {}).values()]):
        (seeds / f"seed-{index}").write_bytes(data)
    with tempfile.TemporaryDirectory() as place:
        count, end = 0, time.monotonic() + seconds

        def once(data: bytes) -> None:
            nonlocal count
            count += 1
            if time.monotonic() > end:  # libFuzzer's own end waits for threads of torch
                print(f"{name}: {count:,} executions in {seconds} s, no finding", flush=True)
                os._exit(0)
            try:
                fuzz.TARGETS[name](Path(place), data)
            except UserError as error:
                if not str(error).isprintable():
                    raise

        options = [f"-artifact_prefix={found}/", "-timeout=20", "-rss_limit_mb=4096", "-max_len=16384"]
        atheris.Setup([sys.argv[0], *options, str(seeds)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
