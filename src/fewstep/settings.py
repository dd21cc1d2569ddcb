"""The base of every section of the configuration, and a setting's constraints in words. Nothing here imports torch."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_BOUNDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}


class Section(BaseModel):
    """Settings with constraints and documentation on their fields: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    def numbers(self) -> dict[str, Any]:
        """The settings that change results, as JSON-able values: fields made by `no_number` are left out."""
        found = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                found[name] = value.numbers()
            elif isinstance(value, dict):
                found[name] = {key: section.numbers() for key, section in value.items()}
            elif not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("number") is False):
                found[name] = self.model_dump(mode="json", include={name})[name]
        return found


def no_number(default: Any = ..., **options: Any) -> Any:  # noqa: ANN401 - as pydantic's own Field
    """A Field whose value changes no result (how often is logged, where a file lies): nothing is redone for it."""
    return Field(default, **options, json_schema_extra={"number": False})


def in_words(field: FieldInfo) -> str:
    """What a setting's value must be: its title where it has one, else by its type and bounds."""
    kind, arguments = field.annotation, get_args(field.annotation)
    if field.title:
        return field.title
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) is tuple:
        count = "one or more" if arguments[-1] is ... else len(arguments)
        return f"a list of {count} entries, each {in_words(FieldInfo.from_annotation(arguments[0]))}"
    kinds = [in_words(FieldInfo.from_annotation(each)) for each in arguments if each is not type(None)]
    kinds = (kinds or [_KINDS[kind]]) + ["null"] * (type(None) in arguments)
    limits = [(name, getattr(limit, name)) for limit in field.metadata for name in _BOUNDS if hasattr(limit, name)]
    bounds = " and ".join(f"{_BOUNDS[name]} {value}" for name, value in limits)
    return " or ".join(kinds) + (f", {bounds}" if bounds else "")
