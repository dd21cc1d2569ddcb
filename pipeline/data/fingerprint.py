"""What tells whether a source has changed: its files as the disk lists them, at once, and their content, by reading."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.files import sha256_file, sha256_json
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.source import OFFLINE, Rows, check_hub_id, check_there, parquet_files, parts, quiet_libraries

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
    if kind == "parquet":
        for number, file in enumerate(map(Path, parquet_files(config, path, config.split))):
            yield f"{number} {file.name}", file
    elif kind == "imagefolder":
        check_there(config, path)
        for folder, folders, names in os.walk(path, followlinks=True):
            folders.sort()
            for file in (Path(folder, name) for name in sorted(names)):
                if file.is_file():
                    yield file.relative_to(path).as_posix(), file
    elif kind == "hub":
        with quiet_libraries():
            dataset: Any = Rows(config, config.split).dataset
        for number, file in enumerate(Path(each["filename"]) for each in dataset.cache_files):
            yield f"{number} {file.name}", file


def hub_commit(config: DataConfig) -> str:
    """The commit of a data set on the hub that `config.revision` names, or its newest. UserError: it is not there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    _, name, _ = parts(config)
    check_hub_id(config, name)
    try:
        commit = HfApi().dataset_info(name, revision=config.revision).sha
    except HfHubHTTPError as error:
        at = f" at revision {config.revision}" if config.revision else ""
        remedy = f"no such public data set on the hub{at} ({type(error).__name__})"
        raise UserError("data.source", config.source, remedy) from None
    except (OfflineModeIsEnabled, OSError):
        raise UserError("data.source", config.source, OFFLINE) from None
    assert commit is not None
    return commit
