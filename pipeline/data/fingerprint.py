"""What tells whether a source has changed: its files as the disk lists them, at once, and their content, by reading."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.files import sha256_file, sha256_json
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.source import open_tables, quiet_libraries
from fewstep.pipeline.data.tables import check_there, parts
from fewstep.pipeline.data.walk import walk

_READ_BY = ("config_name", "split", "image_column", "label_column", "image_size", "channels")


def fingerprint(config: DataConfig) -> str:
    """A hash of how `config.split` is read and of its files' names, sizes and times of change, not of their place."""
    kind, _, _ = parts(config)
    files: Any = [[name, (found := path.stat()).st_size, found.st_mtime_ns] for name, path in source_files(config)]
    return sha256_json([kind, {key: getattr(config, key) for key in _READ_BY}, files])


def content_sha256(config: DataConfig) -> str:
    """A hash of the names and the bytes of the files of `config.split`, all of which are read."""
    return sha256_json([[name, sha256_file(path)] for name, path in source_files(config)])


def source_files(config: DataConfig) -> Iterator[tuple[str, Path]]:
    """The files that `config.split` is read from, in order, with names that tell them apart; the digits have none.

    Of an image folder they are all that it holds, of any split; of a data set on the hub those of its cache.
    """
    kind, _, path = parts(config)
    if kind == "imagefolder":
        check_there(config, path)
        yield from ((name, path / name) for name in walk(path).files if (path / name).is_file())
    elif kind != "digits":
        with quiet_libraries():
            files = open_tables(config, config.split).files
        yield from ((f"{number} {file.name}", file) for number, file in enumerate(files))
