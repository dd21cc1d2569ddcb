"""Checkpoints of a training stage: complete, verified folders of safetensors and JSON.

A checkpoint is written into a staging folder, fsynced, described by a MANIFEST (sha256 and size of each file),
renamed into place and verified; only then is the oldest removed.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.files import (
    check_form,
    json_text,
    read_json,
    remove,
    sealed,
    sha256_file,
    staged_folder,
    unsealed,
    write_json,
)
from fewstep.pipeline.training.levels import LevelLosses

MANIFEST = "MANIFEST.json"
FORMAT = 3
FORM = {
    "format": int,
    "step": int,
    "config_hash": str,
    "losses": [float],
    "levels": {"sums": [float], "counts": [float]},
    "files": {str: {"sha256": str, "size": int}},
}
_NAME = re.compile(r"step-(\d{9})")
_LEFTOVER = re.compile(r"\.step-\d{9}\.(new|old)")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a checkpoint holds: the tensors of the objective, the averages and the optimizer, and unlogged losses."""

    objective: nn.Module
    ema: nn.Module
    """The average, or a ModuleList of several."""
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last log line, so that a resumed log holds the same means."""
    levels: LevelLosses = field(default_factory=LevelLosses)


def save_checkpoint(folder: Path, step: int, state: TrainingState, config_hash: str, keep: int) -> Path:
    """Write `folder`/step-NNNNNNNNN and remove all but the newest `keep`, two at the least. Returns its path.

    Checkpoints of a later step are removed too: training that comes by here again has refused them as corrupt.
    """
    target = folder / f"step-{step:09d}"
    with staged_folder(target) as stage:
        save_file(_tensors(state.objective.state_dict()), stage / "objective.safetensors")
        save_file(_tensors(state.ema.state_dict()), stage / "ema.safetensors")
        save_file(_optimizer_tensors(state.optimizer), stage / "optimizer.safetensors")
        files = {
            path.name: {"sha256": sha256_file(path), "size": path.stat().st_size} for path in sorted(stage.iterdir())
        }
        manifest = {"format": FORMAT, "step": step, "config_hash": config_hash, "losses": state.losses}
        write_json(stage / MANIFEST, sealed(manifest | {"levels": asdict(state.levels), "files": files}))
    verify_checkpoint(target)
    found = list_checkpoints(folder)
    good = [path for path in found if path.name <= target.name]
    for path in found:
        if path not in good[-max(keep, 2) :]:
            remove(path)
    for leftover in folder.iterdir():  # of saves that were killed
        if _LEFTOVER.fullmatch(leftover.name):
            remove(leftover)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first; staging leftovers are not among them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that holds the files it names, each of that size and sha256, and no other.

    UserError names the first file that is not so, and the step.
    """
    step = int(path.name.removeprefix("step-"))
    try:
        manifest = unsealed(value := read_json(path / MANIFEST))
        if manifest is None or json_text(value).encode() != (path / MANIFEST).read_bytes():
            raise UserError(path / MANIFEST, None, f"is corrupt (checkpoint of step {step}): its own sha256 differs")
        check_form(path / MANIFEST, manifest, FORM)
        if manifest["step"] != step:
            raise UserError(path / MANIFEST, None, f"is corrupt (checkpoint of step {step}): it is of another step")
        for name, entry in manifest["files"].items():
            file = path / name
            if not re.fullmatch(r"[\w.-]{1,100}", name):
                raise UserError(path / MANIFEST, name, f"is no file of a checkpoint (of step {step})")
            if not file.is_file():
                raise UserError(file, None, f"is missing from the checkpoint of step {step}")
            if file.stat().st_size != entry["size"] or sha256_file(file) != entry["sha256"]:
                raise UserError(file, None, f"is corrupt (checkpoint of step {step}): sha256 or size differs")
        for file in sorted(path.iterdir()):
            if file.name not in (MANIFEST, *manifest["files"]):
                raise UserError(file, None, f"is no part of the checkpoint of step {step}")
    except OSError as error:
        where = error.filename or path
        raise UserError(where, None, f"cannot be read (checkpoint of step {step}): {error.strerror}") from error
    return manifest


def latest_checkpoint(folder: Path, config_hash: str, say: Callable[[str], None]) -> Path | None:
    """The newest good checkpoint, or None where there is none at all.

    A corrupt one is named through `say` and the one before it is taken. When checkpoints exist and none is good, or
    the good one was made by another configuration, that is a UserError: never a fresh start in silence.
    """
    checkpoints, why = list_checkpoints(folder), ""
    for path in reversed(checkpoints):
        try:
            manifest = verify_checkpoint(path)
        except UserError as error:
            say(f"WARNING: {error}; trying the checkpoint before it")
            why = why or str(error)
            continue
        if manifest["format"] != FORMAT:
            raise UserError(path, None, f"was made by another version of fewstep; remove {folder} to start anew")
        if manifest["config_hash"] != config_hash:
            raise UserError(
                path,
                None,
                "was made by another configuration; go back to that configuration, give the run another name "
                f"(--name), or remove {folder} to start this stage anew",
            )
        return path
    if checkpoints:
        remedy = "bring a good one back, or remove the folder to start this stage anew"
        raise UserError(folder, None, f"holds no good checkpoint (the newest: {why}); {remedy}")
    return None


def load_checkpoint(path: Path, state: TrainingState) -> int:
    """Load a verified checkpoint into `state` and return its step: the next one to train."""
    manifest = verify_checkpoint(path)
    state.objective.load_state_dict(load_file(path / "objective.safetensors"))
    state.ema.load_state_dict(load_file(path / "ema.safetensors"))
    _load_optimizer(state.optimizer, load_file(path / "optimizer.safetensors"))
    state.losses[:] = manifest["losses"]
    state.levels.sums[:], state.levels.counts[:] = manifest["levels"]["sums"], manifest["levels"]["counts"]
    return int(manifest["step"])


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entries in state.items()
        for name, value in entries.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, entries in optimizer.state.items():  # a fused step reads moments in the layout of their parameter
        for name, value in entries.items():
            if name != "step":
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
