"""What an exported file says of itself: one JSON object under the key "fewstep" of its own metadata.

In an .onnx it stands in metadata_props, in a .safetensors in __metadata__, in a .pt2 among the extra files or in the
metadata of the compiled code. Nothing here imports torch: `fewstep inspect FILE` reads all of them in a moment.
"""

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, unreadable
from fewstep.files import canonical_json, check_form

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
_MOST_HEADER, _MOST_FACTS = 100_000_000, 1_000_000  # bytes
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
    check_form(path, facts, FORM)
    return facts


def _of_onnx(path: Path) -> str | None:
    """Of the graph, whose weights are read along."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _of_safetensors(path: Path) -> str | None:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        return json.loads(file.read(length)).get("__metadata__", {}).get(KEY)


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
