"""From a preset or a YAML file, and overrides, to a Config.

A file holds any of the keys, nested or dotted, and may start from a preset with a top-level `preset: NAME`. What is
read comes in layers: preset, file, overrides. `student` holds settings of every student, `students.NAME` those of one.
Every fault is a UserError that names the dotted key, and the file it stands in.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fewstep.errors import UserError, first_line
from fewstep.files import flatten, read_bounded
from fewstep.pipeline.config.schema import Config
from fewstep.settings import Section, in_words

S = TypeVar("S", bound=Section)
Layer = tuple[Path | None, dict[str, Any]]
"""The file (None: a preset, the command line, a caller) and {dotted key: value}."""

DEFAULT_PRESET = "digits"
_PRESETS = files("fewstep.pipeline.config") / "presets"
_LARGEST_FILE = 100_000  # bytes; PyYAML takes time quadratic in it at worst
_LONGEST_TEXT = 4096  # characters of a value, as many as a path may have
_LARGEST_NUMBER = 2**53  # up to which floats hold every whole one
_DEEPEST = 20  # mappings and lists inside one another


def preset_names() -> list[str]:
    """The shipped presets; the default one first."""
    names = sorted(entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_PRESET)


def preset_text(name: str) -> str:
    """The YAML of a preset; its first line is a comment that describes it."""
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(source: str | Path = DEFAULT_PRESET, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a preset or YAML file, with `overrides` by dotted key (text is read like YAML)."""
    read = {key: read_text(key, value) if isinstance(value, str) else value for key, value in (overrides or {}).items()}
    return config_from_layers([*file_layers(source), (None, flat(read))])


def config_from_dict(nested: Mapping[str, Any]) -> Config:
    """The Config that `Config.to_dict` was called on."""
    return config_from_layers([(None, flat(nested))])


def config_from_layers(layers: Sequence[Layer]) -> Config:
    """The Config of layers, each over those before it."""
    return validated(Config, layered(layers), layers=layers)


def file_layers(source: str | Path) -> list[Layer]:
    """What a preset or a YAML file says, after the preset that the file starts from."""
    if str(source) in preset_names():
        return [(None, flat(yaml.load(preset_text(str(source)), _Loader)))]
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or "/" in str(source):
            raise UserError(path, None, "no such YAML file" if not path.is_dir() else "is a folder: give a YAML file")
        raise UserError("preset", str(source), f"not one of {', '.join(preset_names())}, nor a YAML file")
    try:
        nested = _yaml(read_bounded(path, _LARGEST_FILE).decode("utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(path, None, f"is not readable as YAML ({reason}{line})") from None
    except (ValueError, ArithmeticError, LookupError) as error:  # a date, a number of 5,000 digits, an empty !!int
        if isinstance(error, UserError):
            raise
        raise UserError(path, None, f"is not readable as YAML ({first_line(error)})") from None
    if not isinstance(nested, dict):
        raise UserError(path, None, "must hold `key: value` lines")
    base = nested.pop("preset", None)
    if base is not None and base not in preset_names():
        raise UserError(f"{path}: preset", base, f"must be one of {', '.join(preset_names())}")
    return [*(file_layers(base) if base is not None else []), (path, flat(nested, path))]


def config_yaml(config: Config) -> str:
    """A configuration as YAML that `fewstep run FILE` reads."""
    return yaml.dump(config.to_dict(), Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists on one line."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader (no tags), without keys that stand twice, with 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.value in seen:
                what = (
                    f"key {name.value!r} stands twice" if isinstance(name, yaml.ScalarNode) else "a key must be a name"
                )
                raise yaml.constructor.ConstructorError(None, None, what, name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _yaml(text: str) -> Any:  # noqa: ANN401 - whatever stands there
    """The value of a YAML text that takes neither time nor memory without measure to read."""
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        kind = type(token).__name__
        depth += kind.endswith("StartToken") and not kind.startswith(("Stream", "Document"))
        depth -= kind in ("FlowSequenceEndToken", "FlowMappingEndToken", "BlockEndToken")
        if depth > _DEEPEST or kind == "AliasToken":
            what = (
                f"nested more than {_DEEPEST} deep" if depth > _DEEPEST else "with aliases (*name), which are not read"
            )
            raise yaml.YAMLError(f"YAML {what}: write the values out")
    return yaml.load(text, _Loader)


def read_text(key: str, text: str) -> Any:  # noqa: ANN401 - whatever stands there
    """The value of a key given as text: for a key that takes text the text itself, else what YAML reads there."""
    field = config_keys().get(_canonical(key))
    kinds = set(_leaves(field.annotation)) if field else set()
    if kinds and kinds <= {str, Path, NoneType}:
        return None if NoneType in kinds and text.strip() in ("null", "None", "~") else text
    try:
        return _yaml(text) if len(text) <= _LONGEST_TEXT else text
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError):
        return text


def _leaves(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - a type
    if get_origin(annotation) is Literal:
        yield from (type(value) for value in get_args(annotation))
    elif get_args(annotation) and get_origin(annotation) is not tuple:
        for each in get_args(annotation):
            yield from _leaves(each)
    else:
        yield annotation


def flat(nested: Mapping[Any, Any], where: Path | None = None, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; `where` is the file, for the error. A bare name of a method is its `name`."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        dotted = f"{prefix}{name}"
        if dotted.endswith(".method") and isinstance(value, str):
            dotted += ".name"
        if value is None and re.fullmatch(r"students\.[^.]*", dotted):
            value = {}
        inner = flat(value, where, f"{dotted}.") if isinstance(value, Mapping) and value else {dotted: value}
        for key, item in inner.items():
            if key in found:
                raise UserError(_at(where, key), None, "stands twice: keep one")
            _check_size(_at(where, key), item)
        found |= inner
    return found


def _check_size(where: str, value: object) -> None:
    """UserError for a text or a number that nothing here could need."""
    if isinstance(value, list | tuple):
        for item in value:
            _check_size(where, item)
    elif isinstance(value, str) and (len(value) > _LONGEST_TEXT or re.search("[\0\ud800-\udfff]", value)):
        shown = value if len(value) <= 80 else value[:80] + "..."  # half characters: bytes that are no UTF-8
        raise UserError(where, shown, f"must be UTF-8 text of {_LONGEST_TEXT} characters at most")
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise UserError(where, value, "must be a whole number of at most 2^53")


def _at(where: Path | None, name: str) -> str:
    return name if where is None else f"{where}: {name}"


def layered(layers: Sequence[Layer]) -> dict[str, Any]:
    """The nested values of layers, each over those before it, every student with all of its settings.

    A layer's `student` goes over the settings of all students of the layers before it.
    """
    base: Any = {}
    rest: dict[str, Any] = {}
    students: dict[str, Any] = {}
    for where, given in layers:
        values = _nested(given, where)
        common, own = values.pop("student", None), values.pop("students", {})
        rest = _over(rest, values)
        if common is not None:
            base, students = _over(base, common), {name: _over(each, common) for name, each in students.items()}
        if not isinstance(own, dict):
            raise UserError(_at(where, "students"), own, "is a section: give its keys, such as students.NAME.method")
        students |= {name: _over(students.get(name, base), value) for name, value in own.items()}
    return rest | {"students": students or {"student": base}}


def _nested(given: Mapping[str, Any], where: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in given.items():
        *sections, last = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(_at(where, key), value, f"{section} has a value of its own: keep one")
        place[last] = _over(place.get(last), value)
    return found


def _over(low: Any, high: Any) -> Any:  # noqa: ANN401 - nested values
    """`high` over `low`. What belongs to another method, or to a trained teacher where one is loaded, is left out."""
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    found = dict(low)
    for key, value in high.items():
        before = low.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            other_method = key == "method" and value.get("name", before.get("name")) != before.get("name")
            sources = [each.get("source", before.get("source", "train")) for each in (before, value)]
            other_teacher = key == "teacher" and (sources[0] == "train") != (sources[1] == "train")
            before = {} if other_method or other_teacher else before
        found[key] = _over(before, value)
    return found


def sections(kind: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section with what its keys begin with, in the order of the fields; students are `student`."""
    yield prefix, kind
    for name, field in kind.model_fields.items():
        for inner in _models(field.annotation):
            yield from sections(inner, f"{prefix}{name}.".replace("students.", "student."))


def _models(annotation: Any) -> list[type[Section]]:  # noqa: ANN401 - a type
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]


@cache
def config_keys() -> dict[str, FieldInfo]:
    """Every dotted key, in the order of the fields; one that several methods have once."""
    found: dict[str, FieldInfo] = {}
    for prefix, kind in sections():
        for name, field in kind.model_fields.items():
            before = found.get(prefix + name)
            if before and get_origin(before.annotation) is get_origin(field.annotation) is Literal:
                both: Any = Literal[(*get_args(before.annotation), *get_args(field.annotation))]  # type: ignore[valid-type]
                found[prefix + name] = FieldInfo(
                    annotation=both, description=f"{before.description}; {field.description}"
                )
            elif before is None and not _models(field.annotation):
                found[prefix + name] = field
    return found


def _canonical(key: str) -> str:
    """students.NAME.KEY as student.KEY."""
    return re.sub(r"^students\.[^.]*", "student", key)


def validated(kind: type[S], values: Mapping[str, Any], prefix: str = "", layers: Sequence[Layer] = ()) -> S:
    """A section from nested values, as JSON has them; `prefix` is its dotted name with a dot behind it."""
    try:
        return kind.model_validate_json(json.dumps(values, default=str, skipkeys=True))
    except ValidationError as error:
        raise _fault(error, values, prefix, layers) from None


def _fault(error: ValidationError, values: Mapping[str, Any], prefix: str, layers: Sequence[Layer]) -> UserError:
    """pydantic's first fault, in one line: the dotted key, the value, and what it must be."""
    first = min(error.errors(), key=lambda each: each["type"] == "missing")  # a key misspelt is missing too
    kind, value, cause = first["type"], first["input"], first.get("ctx", {}).get("error")
    parts, place = [], values
    for part in first["loc"]:  # what is no key there is the tag of a union or an index into a list
        if isinstance(place, Mapping) and (part in place or (kind == "missing" and part == first["loc"][-1])):
            parts.append(str(part))
            place = place.get(part)
    dotted = prefix + ".".join(parts)
    if list(values.get("students", ())) == ["student"]:
        dotted = re.sub(r"^students\.student\b", "student", dotted)
    here, keys = f"{dotted}." if parts else prefix, config_keys()
    inside = [key for key in keys if key.startswith(f"{_canonical(dotted)}.")]
    if isinstance(cause, UserError):
        dotted, value, remedy = (here + cause.where) if cause.where else dotted, cause.value, cause.remedy
    elif kind == "union_tag_not_found" or (kind == "missing" and parts[-1:] == [first["loc"][-1]]):
        required = [key for key in inside if keys[key].is_required()] + inside
        dotted, value = (required[0] if required else dotted), None
        remedy = f"is required ({keys[_canonical(dotted)].description}): set it, or start from a preset with "
        remedy += f"`preset: {DEFAULT_PRESET}`"
    elif kind == "extra_forbidden":
        remedy = no_such_key(dotted, place if len(parts) < 2 else _inside(values, parts[:-1]))
        value = None if isinstance(value, dict) else value
    elif kind == "union_tag_invalid":
        value, remedy = first["ctx"]["tag"], f"must be one of {first['ctx']['expected_tags'].replace(chr(39), '')}"
    elif inside:
        remedy = f"is a section: give its keys, such as {inside[0]}"
    else:
        field = keys.get(_canonical(dotted))
        remedy = f"must be {in_words(field)}" if field else first["msg"]
        value = "null" if value is None else place if isinstance(place, str) else value
    forms = {dotted, _canonical(dotted)}
    given = (where for where, keys in reversed(layers) if any(key.startswith(form) for form in forms for key in keys))
    return UserError(_at(next(given, None), dotted), value, remedy.replace("{here}", here))


def _inside(values: Any, parts: Sequence[str]) -> Any:  # noqa: ANN401 - nested values
    for part in parts:
        values = values[part]
    return values


def no_such_key(dotted: str, section: Mapping[str, Any]) -> str:
    """Why a key is refused: it belongs to another kind of its section, or it is none; then the nearest one."""
    keys, name = config_keys(), _canonical(dotted)
    if name.startswith("student.method.") and name in keys:
        return f"is no setting of method {section.get('name')}: leave it out, or name the method that has it"
    if name.startswith("teacher.") and (name in keys or any(key.startswith(f"{name}.") for key in keys)):
        source = section.get("source")
        return (
            f"is of a teacher that is trained, and teacher.source is {source!r}: leave it out, or set source to train"
        )
    close = get_close_matches(name[:100], keys, n=1, cutoff=0.6)
    close = close or [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"no such key; did you mean {close[0]}?" if close else "no such key; see --help for the keys"


def values_by_key(layers: Sequence[Layer]) -> dict[str, Any]:
    """{dotted key: value} of layers, of students those of the first, for the help."""
    values = layered(layers)
    return flatten({**values, "student": next(iter(values.pop("students").values()))})
