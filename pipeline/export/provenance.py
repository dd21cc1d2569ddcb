"""What an exported file says of itself: one JSON object under the key "fewstep" of its own metadata.

In an .onnx it stands in metadata_props, in a .safetensors in __metadata__, in a .pt2 among the extra files or in the
metadata of the compiled code. Nothing here imports torch: `fewstep inspect FILE` reads all of them in a moment.
"""

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, unreadable
from fewstep.files import canonical_json, check_form, safetensors_header

KEY = "fewstep"
FORM = {
    "format": int,
    "version": str,
    "run": str,
    "student": str,
    "method": str,
    "steps": [int],
    "noise_levels": [[float]],
    "shape": [int],
    "inputs": [str],
    "output": (str, None),
    "config_hash": str,
    "teacher_hash": str,
    "student_hash": str,
    "protocol": (str, None),
}
OF_CLASSES = {"num_classes": int, "classes": ([str], None)}
"""What a file of a class-conditional student says besides: how many classes, and their names where they are known."""
MOST_CLASSES = 100_000
_MOST_FACTS = 1_000_000  # bytes
_EXTRA = f"extra/{KEY}.json"


def header(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts as the metadata of a file: text by key."""
    return {KEY: canonical_json(dict(facts))}


def provenance_of(path: Path) -> dict[str, Any]:
    """What a file of fewstep says of itself; UserError: it cannot be read, or says nothing."""
    if not path.is_file():
        raise UserError(path, None, "no such file")
    readers = {".onnx": _of_onnx, ".safetensors": _of_safetensors, ".pt2": _of_program}
    if path.suffix not in readers:
        raise UserError(path, None, f"is no {', '.join(readers)}: nothing is known of other files")
    with unreadable(path, f"cannot be read as {path.suffix}"):
        text = readers[path.suffix](path)
    if text is None:
        raise UserError(path, None, "says nothing of itself: fewstep did not export it")
    with unreadable(path, "its provenance is damaged"):
        facts = json.loads(text)
    check_form(path, facts, FORM | (OF_CLASSES if "num_classes" in facts else {}))
    return facts


def _of_onnx(path: Path) -> str | None:
    """Of the graph, whose weights are read along."""
    import onnx

    return of_graph(onnx.load(path, load_external_data=False))


def of_graph(model: Any) -> str | None:  # noqa: ANN401 - a protobuf message
    """What a loaded ONNX graph says of itself, as it stands there."""
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def stated_steps(text: str | None) -> int | None:
    """The number of steps in what a file says of itself, where it is one; anybody may have written it."""
    with suppress(ValueError, LookupError, TypeError):
        steps = json.loads(text or "")["steps"][0]
        return steps if type(steps) is int and 1 <= steps <= 1000 else None
    return None


def stated_classes(text: str | None) -> int | None:
    """The number of classes there, as above."""
    with suppress(ValueError, LookupError, TypeError):
        classes = json.loads(text or "")["num_classes"]
        return classes if type(classes) is int and 1 <= classes <= MOST_CLASSES else None
    return None


def _of_safetensors(path: Path) -> str | None:
    return safetensors_header(path).get("__metadata__", {}).get(KEY)


def _of_program(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            of_package = is_package(name) and name.endswith("wrapper_metadata.json")
            if name.endswith(_EXTRA) or of_package:
                if archive.getinfo(name).file_size > _MOST_FACTS:
                    raise ValueError(f"{name} is longer than {_MOST_FACTS:,} bytes")
                text = archive.read(name).decode()
                return json.loads(text).get(KEY) if of_package else text
    return None


def is_package(name: str) -> bool:
    """Whether a file inside a .pt2 is of a compiled package (AOTInductor)."""
    return "/data/aotinductor/" in name
