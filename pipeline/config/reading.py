"""From a preset or a YAML file, and overrides, to a Config.

A file holds any of the keys, nested or dotted, and may start from a preset with a top-level `preset: NAME`. What is
read comes in layers: preset, file, overrides. `student` holds settings of every student, `students.NAME` those of one.
Every fault is a UserError that names the dotted key, and the file it stands in.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from fewstep.errors import UserError, unreadable
from fewstep.files import read_bounded, read_json
from fewstep.pipeline.config.keys import DEFAULT_PRESET, Layer, at, canonical, config_keys, leaves, validated
from fewstep.pipeline.config.schema import SIGMA_MAX, Config
from fewstep.pipeline.sampling.grammar import ALL, parse_own

_TAG = "tag:yaml.org,2002:"
_PRESETS = files("fewstep.pipeline.config") / "presets"
_LARGEST_FILE = 100_000  # bytes; PyYAML takes time quadratic in it at worst
_LONGEST_TEXT = 4096  # characters of a value, as many as a path may have
_LARGEST_NUMBER = 2**53  # up to which floats hold every whole one
_DEEPEST = 20  # mappings and lists inside one another
_FINISHES = ("matching", "adversarial")


def preset_names() -> list[str]:
    """The shipped presets; the default one first."""
    names = [entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml")]
    return sorted(names, key=lambda name: (name != DEFAULT_PRESET, name))


def preset_text(name: str) -> str:
    """The YAML of a preset; its first line is a comment that describes it."""
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(source: str | Path = DEFAULT_PRESET, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a preset or YAML file, with `overrides` by dotted key (text is read like YAML)."""
    read = {key: read_text(key, value) if isinstance(value, str) else value for key, value in (overrides or {}).items()}
    return config_from_layers([*file_layers(source), (None, flat(read))])


def config_from_dict(nested: Mapping[str, Any], where: Path | None = None) -> Config:
    """The Config that `Config.to_dict` was called on; `where` is the file it is from, for the errors."""
    return config_from_layers([(where, flat(nested, where))])


def resolved(config: Config, timesteps: int, sigma_max: float) -> Config:
    """Return a configuration with what only its teacher tells: the steps of ddpm:all, and students' `sigma_max`.

    timesteps, sigma_max: those of the teacher. UserError: the settings do not go together then.
    """
    values = config.to_dict()
    values["eval"]["samplers"] = [
        str(replace(name, steps=timesteps)) if name.steps == ALL else str(name)
        for name in map(parse_own, config.eval.samplers)
    ]
    highest = min(SIGMA_MAX, math.floor(sigma_max * 100) / 100)
    for each in values["students"].values() if "students" in values else [values["student"]]:
        each["sigma_max"] = each["sigma_max"] or highest
    return config_from_dict(values)


def kept_config(run: Path) -> Config:
    """The Config that a run's folder keeps."""
    return config_from_dict(read_json(run / "config.json", {}), run / "config.json")


def config_from_layers(layers: Sequence[Layer]) -> Config:
    """The Config of layers, each over those before it."""
    return validated(Config, layered(layers), layers=layers)


def file_layers(source: str | Path) -> list[Layer]:
    """What a preset or a YAML file says, after the preset that the file starts from."""
    if str(source) in preset_names():
        nested = yaml.load(preset_text(str(source)), _Loader)
        base = nested.pop("preset", None)
        return [*(file_layers(base) if base is not None else []), (None, flat(nested))]
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or "/" in str(source):
            raise UserError(path, None, "no such YAML file" if not path.is_dir() else "is a folder: give a YAML file")
        raise UserError("preset", str(source), f"not one of {', '.join(preset_names())}, nor a YAML file")
    data = read_bounded(path, _LARGEST_FILE)
    with unreadable(path, "is not readable as YAML"):
        try:
            nested = yaml.load(data.decode("utf-8"), _Loader)
        except yaml.MarkedYAMLError as error:  # its own first line says what was being read, not what is wrong
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ValueError(f"{error.problem}{line}") from None
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


_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence(_TAG + "seq", value, flow_style=True))


class _Loader(yaml.SafeLoader):
    """YAML's safe loader (no tags), with 1e-3 as a number. Refused: aliases, deep nesting, keys that stand twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} deep")
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name), which are not read: write the values out")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if str(name.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {name.value!r} stands twice", problem_mark=name.start_mark)
            seen.add(str(name.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_TAG + "float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def read_text(key: str, text: str) -> Any:  # noqa: ANN401 - whatever stands there
    """The value of a key given as text: for a key that takes text the text itself, else what YAML reads there."""
    field = config_keys().get(canonical(key))
    kinds = {leaf if isinstance(leaf, type) else type(leaf) for leaf in leaves(field.annotation)} if field else {None}
    if kinds - {FieldInfo} <= {str, Path, NoneType}:
        return None if NoneType in kinds and text.strip() in ("null", "None", "~") else text
    try:
        return yaml.load(text, _Loader) if len(text) <= _LONGEST_TEXT else text
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError):
        return text


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
                raise UserError(at(where, key), None, "stands twice: keep one")
            _check_size(at(where, key), item)
        found |= inner
    return found


def _check_size(where: str, value: object) -> None:
    """UserError for a text or a number that nothing here could need."""
    if isinstance(value, list | tuple):
        for item in value:
            _check_size(where, item)
    elif isinstance(value, str) and (len(value) > _LONGEST_TEXT or re.search("[\0\ud800-\udfff]", value)):
        # half characters: bytes that are no UTF-8
        raise UserError(where, value[:80], f"must be UTF-8 text of {_LONGEST_TEXT} characters at most")
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise UserError(where, value, "must be a whole number of at most 2^53")


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
            raise UserError(at(where, "students"), own, "is a section: give its keys, such as students.NAME.method")
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
                raise UserError(at(where, key), value, f"{section} has a value of its own: keep one")
        place[last] = _over(place.get(last), value)
    return found


def _over(low: Any, high: Any) -> Any:  # noqa: ANN401 - nested values
    """`high` over `low`, without what belongs to another method, or to a teacher from another source.

    A finish, of matching or adversarial, is that of the method that it was chosen with.
    """
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return high
    found = dict(low)
    for key, value in high.items():
        before, tag = low.get(key), {"method": "name", "teacher": "source"}.get(key)
        tags = [each.get(tag, "train") for each in (before, value) if isinstance(each, dict)]
        if tag and len(tags) == 2 and tag in value and tags[0] != tags[1]:
            before = {name: each for name, each in (before or {}).items() if name == "guidance"}
            found = {name: each for name, each in found.items() if name not in _FINISHES or name in high}
        found[key] = _over(before, value)
    return found
