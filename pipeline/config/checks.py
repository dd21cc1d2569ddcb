"""Checks of single configuration values: each raises UserError naming the dotted key, value and remedy."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fewstep.errors import UserError

T = TypeVar("T")


def whole(where: str, value: object, *, least: int, most: int | None = None) -> None:
    """A whole number in [least, most], in any case below 2^53, up to which floats hold every one."""
    largest = 2**53 if most is None else most
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        upper = f" and at most {largest}" if most is not None or (isinstance(value, int) and value > largest) else ""
        raise UserError(where, value, f"must be a whole number, at least {least}{upper}")


def number(
    where: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """A finite number with value >= least, value > above and value < below."""
    bounds = [f"at least {least}"] * (least is not None)
    bounds += [f"greater than {above}"] * (above is not None)
    bounds += [f"less than {below}"] * (below is not None)
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not abs(value) <= sys.float_info.max
        or (least is not None and value < least)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        raise UserError(where, value, f"must be a number {' and '.join(bounds)}")


def flag(where: str, value: object) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise UserError(where, value, "must be true or false")


def choice(where: str, value: object, options: Collection[Any]) -> None:
    """One of a few values."""
    if isinstance(value, bool) or not any(value == option for option in options):
        raise UserError(where, value, f"must be one of {', '.join(str(option) for option in options)}")


def entries(where: str, value: object, *, length: int | None = None) -> None:
    """A tuple with at least one entry, or with exactly `length`."""
    if not isinstance(value, tuple) or not value or (length is not None and len(value) != length):
        raise UserError(where, value, f"must be a tuple of {length or 'one or more'} entries")


def distinct(where: str, value: Sequence[Any]) -> None:
    """A sequence without repeated entries."""
    for index, entry in enumerate(value):
        if entry in value[:index]:
            raise UserError(where, list(value), f"{entry} stands there twice: name it once")


def section(where: str, value: object, kind: type[T]) -> T:
    """An instance of a section's class, returned with its type."""
    if not isinstance(value, kind):
        raise UserError(where, value, f"must be a {kind.__name__}")
    return value


def weights_of(extractor: str, files: Mapping[str, Path | None]) -> Path | None:
    """The weights file of an extractor, from {extractor: file or None}; none may be given for another extractor."""
    for name, path in files.items():
        if path is not None and name != extractor:
            remedy = f"has no effect with eval.extractor = {extractor}: leave it out"
            raise UserError(f"eval.{name}_weights", str(path), remedy)
    return files.get(extractor)
