"""What the forked processes do: commands and small trainings, with faults injected."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def command(argv: Sequence[str], saved: str | None = None, fault: str | None = None) -> int:
    """A command line under a fault, a function of this file, or None.

    `saved` names a file to which the manifest of each checkpoint goes as a line.
    """
    from fewstep.pipeline import cold_start, loop
    from fewstep.pipeline.cli import main

    cold_start.cold_start = lambda text, device: {"import_s": 2.5, "load_s": 0.75, "first_image_s": 0.125}
    if saved is not None:
        save = loop.save_checkpoint

        def recorded(folder: Path, *given: Any) -> Path:
            path = save(folder, *given)
            manifest = json.loads((path / "MANIFEST.json").read_text())
            with open(saved, "a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": folder.name} | manifest) + "\n")
            return path

        loop.save_checkpoint = recorded
    if fault is not None:
        globals()[fault]()
    return main(argv)


def training(folder: str, die_at: int | None = None, labels: str | None = None) -> None:
    """Train the job of `small_training` in `folder`, from its newest checkpoint.

    Ends at once, like a process killed there, before filesystem step number `die_at` of the saves and log writes; the
    step's label is appended to the file `labels`.
    """
    from small_training import Training

    from fewstep.pipeline import checkpoint, log

    log._has_tensorboard = lambda: False
    calls = []

    def reached(label: str, half: Callable[[], None] = lambda: None) -> None:
        if labels is not None:
            with open(labels, "a", encoding="utf-8") as file:
                file.write(label + "\n")
        if len(calls) == die_at:
            half()
            os._exit(9)
        calls.append(label)

    def save_file(tensors: Any, path: Path, real: Callable[..., None] = checkpoint.save_file) -> None:
        def half() -> None:
            real(tensors, path)
            os.truncate(path, path.stat().st_size // 2)

        reached(f"create {path.name}")
        reached(f"write half of {path.name}", half)
        real(tensors, path)

    checkpoint.save_file = save_file
    for name in ("mkdir", "rename", "replace", "fsync", "chmod", "unlink", "rmdir"):
        setattr(os, name, _labelled(name, getattr(os, name), reached))
    Training(Path(folder)).run()


def _labelled(name: str, real: Callable[..., Any], reached: Callable[[str], None]) -> Callable[..., Any]:
    def call(place: Any, *given: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
        reached(f"{name} {os.path.basename(path)}")
        return real(place, *given, **options)

    return call
