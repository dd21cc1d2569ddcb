"""The dotted keys of the configuration, and what is wrong with a value: pydantic's faults as one line."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fewstep.errors import UserError
from fewstep.pipeline.config.schema import Config
from fewstep.settings import Section, in_words

S = TypeVar("S", bound=Section)
Layer = tuple[Path | None, dict[str, Any]]
"""The file (None: a preset, the command line, a caller) and {dotted key: value}."""
DEFAULT_PRESET = "digits"


def sections(kind: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section with what its keys begin with, in the order of the fields; students are `student`."""
    yield prefix, kind
    for name, field in kind.model_fields.items():
        for inner in filter(_is_section, leaves(field.annotation)):
            yield from sections(inner, f"{prefix}{name}.".replace("students.", "student."))


def leaves(annotation: Any) -> list[Any]:  # noqa: ANN401 - a type
    """The types and values that a type is put together of."""
    arguments = get_args(annotation)
    return [leaf for each in arguments for leaf in leaves(each)] if arguments else [annotation]


def _is_section(leaf: object) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, Section)


@cache
def config_keys() -> dict[str, FieldInfo]:
    """Every dotted key, in the order of the fields; one that several methods have once."""
    found: dict[str, FieldInfo] = {}
    for prefix, kind in sections():
        for name, field in kind.model_fields.items():
            before = found.get(prefix + name)
            if before and before.annotation == field.annotation:
                continue
            if before and get_origin(before.annotation) is get_origin(field.annotation) is Literal:
                both: Any = Literal[(*get_args(before.annotation), *get_args(field.annotation))]
                text = f"{before.description}; {field.description}"
                found[prefix + name] = FieldInfo(annotation=both, description=text)
            elif before is None and not any(map(_is_section, leaves(field.annotation))):
                found[prefix + name] = field
    return found


def canonical(key: str) -> str:
    """students.NAME.KEY as student.KEY."""
    return re.sub(r"^students\.[^.]*", "student", key)


def at(where: Path | None, key: str) -> str:
    """A key as an error names it: with the file that it stands in."""
    return key if where is None else f"{where}: {key}"


def validated(kind: type[S], values: Mapping[str, Any], prefix: str = "", layers: Sequence[Layer] = ()) -> S:
    """A section from nested values, as JSON has them; `prefix` is its dotted name with a dot behind it."""
    try:
        return kind.model_validate_json(json.dumps(values, default=str, skipkeys=True))
    except ValidationError as error:
        raise _fault(error, values, prefix, layers) from None


def _fault(error: ValidationError, values: Mapping[str, Any], prefix: str, layers: Sequence[Layer]) -> UserError:
    """pydantic's first fault, in one line: the dotted key, the value, and what it must be."""
    first: Any = min(error.errors(), key=lambda each: each["type"] == "missing")  # a key misspelt is missing too
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    cause, keys = context.get("error"), config_keys()
    parts, place, section = [], values, values
    for part in first["loc"]:  # what is no key there is the tag of a union or an index into a list
        if isinstance(place, Mapping) and (part in place or (kind == "missing" and part == first["loc"][-1])):
            parts.append(part)
            section, place = place, place.get(part)
    dotted = prefix + ".".join(parts)
    if list(values.get("students", ())) == ["student"]:
        dotted = re.sub(r"^students\.student\b", "student", dotted)
    here = f"{dotted}." if parts else prefix
    inside = [key for key in keys if key.startswith(f"{canonical(dotted)}.")]
    if isinstance(cause, UserError):
        dotted, value, remedy = (here + cause.where) if cause.where else dotted, cause.value, cause.remedy
    elif kind == "union_tag_not_found" or (kind == "missing" and parts[-1:] == [first["loc"][-1]]):
        dotted, value = next((key for key in inside if keys[key].is_required()), inside[0] if inside else dotted), None
        remedy = f"is required ({keys[canonical(dotted)].description}): set it, or start from a preset with "
        remedy += f"`preset: {DEFAULT_PRESET}`"
    elif kind == "extra_forbidden":
        value, remedy = None if isinstance(value, dict) else value, no_such_key(dotted, section)
    elif kind == "union_tag_invalid":
        value, remedy = context["tag"], f"must be one of {context['expected_tags'].replace(chr(39), '')}"
    elif inside:
        remedy = f"is a section: give its keys, such as {inside[0]}"
    else:
        field = keys.get(canonical(dotted))
        remedy, value = f"must be {in_words(field)}" if field else first["msg"], "null" if value is None else value
    forms = (dotted, canonical(dotted))
    given = (where for where, flat in reversed(layers) if any(key.startswith(forms) for key in flat))
    return UserError(at(next(given, None), dotted), value, remedy.replace("{here}", here))


def no_such_key(dotted: str, section: Mapping[str, Any]) -> str:
    """Why a key is refused: it belongs to another kind of its section, or it is none; then the nearest one."""
    keys, name = config_keys(), canonical(dotted)
    if name.startswith("student.method.") and name in keys:
        return f"is no setting of method {section.get('name')}: leave it out, or name the method that has it"
    if name.startswith("teacher.") and (name in keys or any(key.startswith(f"{name}.") for key in keys)):
        source = f"teacher.source is {section.get('source')!r}"
        return f"is of a teacher that is trained, and {source}: leave it out, or set source to train"
    close = get_close_matches(name[:100], keys, n=1, cutoff=0.6)
    close = close or [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"no such key; did you mean {close[0]}?" if close else "no such key; see --help for the keys"
