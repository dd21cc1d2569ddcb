"""What the forked processes do: commands and small trainings, with faults injected."""

import json
from collections.abc import Sequence
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
