"""Constraints that settings of several sections share."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from fewstep.errors import UserError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


def distinct(where: str, values: Sequence[Any]) -> None:
    """UserError, at `where`, for a value that stands twice."""
    if (twice := next((value for value in values if values.count(value) > 1), None)) is not None:
        raise UserError(where, list(values), f"{twice} stands there twice: name it once")
