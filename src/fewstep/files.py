"""Files that are complete or absent: atomic writes, staged folders, hashes, JSON, values under a seal."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewstep.errors import UserError

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


def read_json(path: Path) -> Any:
    """A JSON file's value; UserError names the file when it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, None, "no such file") from None
    except ValueError as error:
        raise UserError(path, None, f"is not valid JSON ({error})") from None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A value of JSON with its sha256 in it, under "sha256"."""
    return {**value, "sha256": sha256_json(value)}


def unsealed(value: Any) -> dict[str, Any] | None:
    """What `sealed` took, or None where it has changed since."""
    if not isinstance(value, dict):
        return None
    content = {key: item for key, item in value.items() if key != "sha256"}
    try:
        return content if value.get("sha256") == sha256_json(content) else None
    except ValueError:  # a number that is none
        return None


def remove(path: Path) -> None:
    """Remove a file, a folder with all that it holds, or a link, never what that points to; nothing is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed calls of `write_bytes` left anywhere in a folder; nobody may be writing in it."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename or a new file in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that at every moment it is the old one or the new one, whole."""
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


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
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(target)
    old, stage = _aside(target), target.parent / f".{target.name}.new"
    remove(stage)
    stage.mkdir()
    try:
        yield stage
        _fsync_tree(stage)
    except BaseException:
        with suppress(OSError):
            remove(stage)
        raise
    if os.path.lexists(target):
        os.rename(target, old)
    os.rename(stage, target)
    fsync_folder(target.parent)
    with suppress(OSError):
        remove(old)


def restore_folder(target: Path) -> None:
    """Undo a replacement of `target` that was cut off between its two renames."""
    old = _aside(Path(target))
    if os.path.lexists(old):
        if os.path.lexists(target):
            remove(old)
        else:
            os.rename(old, target)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.old"


def _fsync_tree(folder: Path) -> None:
    for directory, _, names in os.walk(folder):
        for name in names:
            with open(Path(directory, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(directory))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
