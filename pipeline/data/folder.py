"""A folder of image files as its owner means it: its splits, its classes, and what its metadata files say of images."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from fewstep.errors import UserError, unreadable
from fewstep.pipeline.data.splits import split_of_folder
from fewstep.pipeline.data.walk import Walked, walk

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CLASS = "label"
"""The column that the class folders make."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images of a folder, by their paths relative to it.

    splits: the images of each split, in the order of their paths. columns: {column: {image: value}}, of the metadata
    files and, in `CLASS`, of the class folders. left_out: in words, what of the folder is no part of it.
    """

    splits: dict[str, list[str]]
    columns: dict[str, dict[str, Any]]
    left_out: list[str]


def read_image_folder(folder: Path) -> ImageFolder:
    """List the images of a folder.

    Folders that hold all images are passed through. Then, where every image lies in a folder that is named for a split
    (train, test, ...), those are the splits; otherwise all images are one split, train, whatever words their names
    hold. Where every image lies in a folder, and there are two or more, the outermost ones are the classes.

    UserError: there are no images; a metadata file is damaged or names an image that is not there.
    """
    walked = walk(folder)
    images = walked.images()
    if not images:
        raise UserError("data.source", f"imagefolder:{folder}", f"the folder holds no images{_instead(walked)}")
    splits, classes = _structure(images)
    columns: dict[str, dict[str, Any]] = {CLASS: classes} if classes else {}
    known, again, used = {*images}, 0, {*images}
    for name in (name for name in walked.files if PurePosixPath(name).name in METADATA):
        used.add(name)
        named = set[str]()
        for image, values in _metadata(folder, name):
            if image not in known:
                raise UserError(folder / name, image, "is not among the images of the folder: remove the row")
            again += image in named
            named.add(image)
            for column, value in values.items():
                columns.setdefault(column, {}).setdefault(image, value)
    left_out = walked.left_out(used)
    if again:
        left_out.append(f"rows of metadata that name an image again: {again:,}")
    return ImageFolder(splits=splits, columns=columns, left_out=left_out)


def _structure(images: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the splits, and the class of each image, where there are classes."""
    parts = _without_wrappers([PurePosixPath(name).parts for name in images], stop_at_split=True)
    declared = [split_of_folder(each[0]) if len(each) > 1 else None for each in parts]
    splits: dict[str, list[str]] = {}
    for name, split in zip(images, declared if all(declared) else ["train"] * len(images), strict=True):
        splits.setdefault(split or "train", []).append(name)
    if all(declared):
        parts = _without_wrappers([each[1:] for each in parts])
    folders = [each[0] for each in parts if len(each) > 1]
    if len(folders) < len(images) or len({*folders}) < 2:
        return splits, {}
    return splits, dict(zip(images, folders, strict=True))


def _without_wrappers(parts: list[tuple[str, ...]], *, stop_at_split: bool = False) -> list[tuple[str, ...]]:
    """Return paths without the folders that all of them lie in, down to one that is named for a split."""
    while len({each[0] if len(each) > 1 else None for each in parts}) == 1 and len(parts[0]) > 1:
        if stop_at_split and split_of_folder(parts[0][0]):
            break
        parts = [each[1:] for each in parts]
    return parts


def _instead(walked: Walked) -> str:
    """Say what a folder without images holds."""
    if archives := walked.archives():
        return f", but {archives[0]}: unpack it and give the folder of its images"
    return "".join(f"; {each}" for each in walked.left_out(set()))


def _metadata(folder: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the image, relative to the folder, and the other columns of each row of a metadata file."""
    path, beside = folder / name, PurePosixPath(name).parent
    with unreadable(path, "cannot be read"):
        rows = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[name.rpartition(".")[2]](path)
    for number, row in enumerate(rows, start=1):
        keys = [key for key in row if key == "file_name"] or [key for key in row if key.endswith("_file_name")]
        if len(keys) != 1 or not isinstance(row[keys[0]], str):
            remedy = "must name an image in the column file_name, or the file must not be called metadata"
            raise UserError(f"{path}, row {number}", None, remedy)
        yield normpath(beside / row[keys[0]]), {key: value for key, value in row.items() if key != keys[0]}


def _csv(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a CSV file; a column of whole numbers becomes numbers, an empty cell None."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file, strict=True, restkey="", restval=""))
    for column in {*rows[0]} if rows else ():
        given = [row[column] for row in rows if row[column]]
        numeric = bool(given) and all(isinstance(each, str) and each.lstrip("-").isdecimal() for each in given)
        for row in rows:
            row[column] = (int(row[column]) if numeric else row[column]) if row[column] else None
    return rows


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()
