"""Files that are complete or absent: atomic writes, staged folders, hashes, JSON, values under a seal."""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import Any

from fewstep.errors import UserError, first_line

MOST_JSON, DEEPEST_JSON = 100_000_000, 100  # bytes; lists and objects inside one another
Form = Any
"""What a JSON value has to look like: see `check_form`."""

_POINTER = b"version https://git-lfs.github.com/spec/v1"
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys; other values stay as they are."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat


def read_bounded(path: Path, most: int) -> bytes:
    """A file's bytes, at most `most`. UserError: no such file, no regular one (a pipe never ends), or a longer one."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise UserError(path, None, f"is {what}: a file is needed")
        if status.st_size > most:
            raise UserError(path, None, f"is longer than {most:,} bytes: it cannot be what is needed here")
        check_not_pointer(path)
        with open(path, "rb") as file:
            return file.read(most)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(path, None, "no such file") from None


def check_not_pointer(path: Path) -> None:
    """Raise UserError for what git leaves in a file's place without git-lfs."""
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(path, None, "is a git-lfs pointer, not the file itself: run git lfs pull in its folder")


def read_json(path: Path, form: Form = object) -> Any:
    """A JSON file's value; UserError names the file where it is missing, malformed, too long or of another form."""
    data = read_bounded(path, MOST_JSON)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(path, None, f"is not valid JSON ({first_line(error)})") from None
    level = [value]
    for _ in range(DEEPEST_JSON + 1):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = list(chain.from_iterable(inner))
    if level:
        raise UserError(path, None, f"is JSON nested more than {DEEPEST_JSON} deep")
    check_form(path, value, form)
    return value


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON before the tensors of a safetensors file: {name: {"dtype", "shape", ...}, "__metadata__": {...}}.

    ValueError, or another of what is no such file, or one that is cut short: the caller says what the file should have
    been.
    """
    check_not_pointer(path)
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_JSON:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    if path.stat().st_size != 8 + length + max(ends, default=0):
        raise ValueError("its length is not what its header says")
    return header


def check_form(where: object, value: Any, form: Form) -> None:
    """UserError, naming the first part that differs, unless a JSON value has a form.

    A form is a type (float: any finite number; object: anything), a tuple of forms (one of them; None is null), a list
    of one form (a list of those), or a dictionary: of forms by key (more keys may be there), or {str: form}.
    """
    if fault := _fault(value, form, ""):
        raise UserError(where, None, f"is not of the form that is needed: {fault}")


def _fault(value: Any, form: Form, at: str) -> str | None:
    """What differs first, None where nothing does."""
    if isinstance(form, tuple):
        faults = [_fault(value, each, at) for each in form]
        return None if None in faults else faults[-1]
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{at or 'it'} is no list"
        return next(filter(None, (_fault(item, form[0], f"{at}[{index}]") for index, item in enumerate(value))), None)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{at or 'it'} is no JSON object"
        if missing := [key for key in form if isinstance(key, str) and key not in value]:
            return f"{at or 'it'} has no {missing[0]!r}"
        forms = dict.fromkeys(value, form[str]) if str in form else form
        return next(filter(None, (_fault(value[key], forms[key], f"{at}.{key}".strip(".")) for key in forms)), None)
    if form is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    else:
        fits = value is None if form is None else isinstance(value, form) and (form is object or type(value) is form)
    return None if fits else f"{at or 'it'} is {type(value).__name__}, which is not what stands there"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value of JSON with its sha256 in it, under "sha256"; one from before is replaced."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    return {**content, "sha256": sha256_json(json.loads(canonical_json(content)))}  # keys as a file has them: text


def unsealed(value: Any) -> dict[str, Any] | None:
    """What `sealed` took, or None where it has changed since."""
    with suppress(ValueError):  # a number that is none
        if isinstance(value, dict) and sealed(value)["sha256"] == value.get("sha256"):
            return {key: item for key, item in value.items() if key != "sha256"}
    return None


def read_sealed(path: Path, form: Form = object, remedy: str = "remove it") -> Any:
    """What was written under a seal; a value without one, of an earlier version, as it is.

    UserError: see `read_json`; the value has changed since, which `remedy` helps.
    """
    value = read_json(path, form)
    if not isinstance(value, dict) or "sha256" not in value:
        return value
    content = unsealed(value)
    if content is None:
        raise UserError(path, None, f"is corrupt (its own sha256 differs); {remedy}")
    return content


def remove(path: Path) -> None:
    """Remove a file, a folder with all that it holds, or a link, never what that points to; nothing is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, older_than: float = -math.inf) -> None:
    """Remove what killed calls of `write_bytes` left anywhere in a folder.

    Nobody may be writing in it, unless for fewer than `older_than` seconds.
    """
    for path in folder.rglob(".*.tmp"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def _fsync(path: Path) -> None:
    """Flush a file, or a folder's entries, so that a rename or a new file in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that at every moment it is the old one or the new one, whole."""
    temporary = path.parent / f".{path.name}.{token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. NaN and infinity are refused."""
    write_bytes(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes target's place whole, on failure it is removed.

    Files and folders are fsynced before the rename. An earlier `target` is moved aside first and removed last,
    so that a kill at any moment leaves the old folder, the new one, or (between two renames) the old one under
    `.target.old`, which the next call puts back. A link in target's place is replaced, what it points to is left alone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(target)
    old, stage = _beside(target, "old"), _beside(target, "new")
    stage.mkdir()
    try:
        yield stage
        for path in (*stage.rglob("*"), stage):
            _fsync(path)
    except BaseException:
        with suppress(OSError):
            remove(stage)
        raise
    if os.path.lexists(target):
        os.rename(target, old)
    os.rename(stage, target)
    _fsync(target.parent)
    with suppress(OSError):
        remove(old)


def restore_folder(target: Path) -> None:
    """Undo a replacement of `target` that was cut off between its two renames, and remove one that was never whole."""
    old = _beside(target, "old")
    remove(_beside(target, "new"))
    if os.path.lexists(old):
        if os.path.lexists(target):
            remove(old)
        else:
            os.rename(old, target)


def _beside(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{what}"
