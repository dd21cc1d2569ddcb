"""Stages: each leaves a folder with a manifest, and is done again only when what it was made from has changed."""

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fewstep.errors import UserError
from fewstep.files import (
    flatten,
    read_sealed,
    restore_folder,
    sealed,
    sha256_file,
    sha256_json,
    staged_folder,
    write_json,
)
from fewstep.progress import say

MANIFEST = "manifest.json"
FORM = {"inputs": {}, "outputs": {str: {"sha256": str, "size": int}}}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage; UserError where it is not as it was written."""
    return read_sealed(folder / MANIFEST, FORM, f"remove {folder} to make it again")


def stage_hash(folder: Path) -> str:
    """A hash of what a finished stage left: its outputs' sha256, for the stages that stand on it."""
    return sha256_json(read_manifest(folder)["outputs"])


def is_fresh(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether the stage's folder is whole and was made from these inputs; what is stale is said."""
    restore_folder(folder)
    if not (folder / MANIFEST).exists():
        return False
    manifest = read_manifest(folder)
    if changed := _changed(manifest["inputs"], inputs):
        say(f"{folder.name}: stale ({', '.join(changed[:3])} changed since), made again")
        return False
    for name, output in manifest["outputs"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != output["size"]:
            say(f"{folder.name}: {name} is missing or was cut short, made again")
            return False
    return True


def verify_outputs(folder: Path) -> None:
    """UserError naming the first file of a finished stage whose sha256 is not its manifest's."""
    for name, output in read_manifest(folder)["outputs"].items():
        if sha256_file(folder / name) != output["sha256"]:
            raise UserError(folder / name, None, f"is corrupt (its sha256 changed); remove {folder} to make it again")


def make_stage(
    folder: Path,
    inputs: dict[str, Any],
    facts: dict[str, Any],
    build: Callable[[Path], dict[str, Any] | None],
) -> None:
    """Build a stage's folder, complete or not at all. `build` fills it and may return more for the manifest.

    OSError names the run's folder, also for a full disk that safetensors reports as an exception of its own.
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    try:
        with staged_folder(folder) as stage:
            more = build(stage) or {}
            seconds = time.monotonic() - clock
            value = manifest(stage, folder.name, inputs, seconds, started, facts | more)
            write_json(stage / MANIFEST, sealed(value))
    except SafetensorError as error:
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder.parent)) from error
    say(f"{folder.name}: done in {seconds:.0f} s")


def manifest(
    folder: Path, name: str, inputs: dict[str, Any], seconds: float, started: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of a folder's files: inputs and their hash, time, sha256 of each output."""
    outputs = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    return {
        "format": 1,
        "stage": name,
        "input_hash": sha256_json(inputs),
        "inputs": inputs,
        "started": started,
        "seconds": round(seconds, 3),
        "outputs": outputs,
    } | facts


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Dotted names of the inputs that differ."""
    old, new = flatten(before), flatten(now)
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
