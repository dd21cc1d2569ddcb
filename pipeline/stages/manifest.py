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


def model_hash(folder: Path) -> str:
    """A hash of the model that a finished stage left: sha256 of its weights and configurations, not of its card."""
    outputs = read_manifest(folder)["outputs"]
    return sha256_json({name: outputs[name]["sha256"] for name in filter(_is_model_file, outputs)})


def folder_hash(folder: Path) -> str:
    """`model_hash` of a diffusers folder without a manifest, as files have it now."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return sha256_json({name: sha256_file(folder / name) for name in filter(_is_model_file, names)})


def _is_model_file(name: str) -> bool:
    """Whether a file of a pipeline's folder has a part in what the model computes."""
    return name.endswith((".json", ".safetensors")) and name != MANIFEST


def changed_inputs(folder: Path, title: str, inputs: dict[str, Any]) -> dict[str, str] | None:
    """What has changed (see `changes`) since a stage was made; None where it is not there or not whole."""
    restore_folder(folder)
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    for name, output in manifest["outputs"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != output["size"]:
            say(f"{title}: {name} is missing or was cut short, made again")
            return None
    return changes(manifest["inputs"], inputs)


def verify_outputs(folder: Path) -> None:
    """UserError naming the first file of a finished stage whose sha256 is not its manifest's."""
    for name, output in read_manifest(folder)["outputs"].items():
        if sha256_file(folder / name) != output["sha256"]:
            raise UserError(folder / name, None, f"is corrupt (its sha256 changed); remove {folder} to make it again")


def make_stage(
    folder: Path,
    title: str,
    inputs: dict[str, Any],
    facts: dict[str, Any],
    build: Callable[[Path], dict[str, Any] | None],
) -> None:
    """Build a stage's folder, complete or not at all. `build` fills it and may return more for the manifest.

    A full disk is an OSError, also where safetensors reports it as an exception of its own.
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    try:
        with staged_folder(folder) as stage:
            more = build(stage) or {}
            seconds = time.monotonic() - clock
            files = sorted(path for path in stage.rglob("*") if path.is_file())
            manifest = {
                "format": 1,
                "stage": title,
                "input_hash": sha256_json(inputs),
                "inputs": inputs,
                "started": started,
                "seconds": round(seconds, 3),
                "outputs": {
                    path.relative_to(stage).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
                    for path in files
                },
            }
            write_json(stage / MANIFEST, sealed(manifest | facts | more))
    except SafetensorError as error:
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
    say(f"{title}: done in {seconds:.0f} s")


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """{dotted name: "name old -> new"} of the inputs that differ; hashes are not shown."""
    old, new, found = flatten(before), flatten(now), {}
    for key in sorted(old.keys() | new.keys()):
        was, now_is = old.get(key), new.get(key)
        if was != now_is:
            hashed = any(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in (was, now_is))
            shown = "is new" if was is None else "is gone" if now_is is None else "is another one"
            name = key.removeprefix("weights.").removeprefix("search.")
            values = ("none" if value is None else value for value in (was, now_is))
            found[key] = f"{name} {shown}" if hashed else f"{name} {' -> '.join(map(str, values))}"
    return found
