"""The files below a folder, the same ones for training, benchmarks and fingerprints, and what is left out."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.pipeline.data.decode import EXTENSIONS

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True)
class Walked:
    """What lies below a folder: paths relative to it, with `/` between their parts.

    files: every file, in the order of their paths. hidden: files and folders that were not looked into, as their names
    begin with a dot, or a folder's with two underscores. loops: links to a folder that they lie in.
    """

    files: list[str]
    hidden: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)

    def images(self) -> list[str]:
        """Return the files that are images by their names."""
        return [name for name in self.files if name.lower().endswith(EXTENSIONS)]

    def archives(self) -> list[str]:
        """Return the archives, which are not opened."""
        return [name for name in self.files if name.lower().endswith(ARCHIVES)]

    def left_out(self, used: set[str]) -> list[str]:
        """Say in a few words each what of the folder is not among the files `used`."""
        said = [_some("hidden", self.hidden), _some("in a loop of links", self.loops)]
        archives = [name for name in self.archives() if name not in used]
        said.append(_some("archives, which are not opened", archives))
        rest = [name for name in self.files if name not in used and name not in archives]
        endings = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in rest)
        kinds = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(4))
        return [*filter(None, said), *([f"not images by their names: {kinds}"] if rest else [])]


def walk(folder: Path) -> Walked:
    """List everything below a folder, through links. OSError: a folder in it cannot be read."""
    found, waiting = Walked([]), [("", frozenset[tuple[int, int]]())]
    while waiting:
        place, above = waiting.pop()
        status = os.stat(folder / place)
        here = (status.st_dev, status.st_ino)
        if here in above:
            found.loops.append(place)
            continue
        with os.scandir(folder / place) as entries:
            for entry in entries:
                name, is_folder = f"{place}/{entry.name}" if place else entry.name, entry.is_dir()
                if entry.name.startswith((".", "__") if is_folder else "."):
                    found.hidden.append(name)
                elif is_folder:
                    waiting.append((name, above | {here}))
                else:
                    found.files.append(name)
    for names in (found.files, found.hidden, found.loops):
        names.sort()
    return found


def _some(what: str, names: list[str]) -> str:
    """Name the first three of what is left out for a reason; "" where there is none."""
    if not names:
        return ""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}"
