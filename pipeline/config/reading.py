"""From a preset or a YAML file, and overrides, to a Config.

A file holds any of the keys, nested or dotted, and may start from a preset with a top-level `preset: NAME`.
Overrides come last. Types are read by jsonargparse; every fault is a UserError naming the file or dotted key.
"""

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from fewstep.errors import UserError, first_line
from fewstep.files import read_bounded
from fewstep.pipeline.config.schema import Config

DEFAULT_PRESET = "digits"
_PRESETS = files("fewstep.pipeline.config") / "presets"
_LARGEST_FILE = 100_000  # bytes; PyYAML takes time quadratic in it at worst
_LONGEST_TEXT = 4096  # characters of a value, as many as a path may have
_DEEPEST = 20  # mappings and lists inside one another


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting: dotted name, type, documentation, its section's documentation, default (or MISSING)."""

    name: str
    kind: Any
    doc: str
    section: str
    default: Any


@cache
def config_keys() -> dict[str, Key]:
    """Every dotted key of Config, in the order of its fields."""
    return {key.name: key for key in _keys_of(Config, "")}


def _keys_of(kind: type, prefix: str) -> Iterable[Key]:
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _keys_of(hint, f"{prefix}{field.name}.")
        else:
            assert get_origin(hint) is Annotated
            doc = (kind.__doc__ or "").partition("\n")[0]
            bare, text = get_args(hint)
            yield Key(name=prefix + field.name, kind=bare, doc=text, section=doc, default=field.default)


def preset_names() -> list[str]:
    """The shipped presets; the default one first."""
    names = sorted(entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_PRESET)


def preset_text(name: str) -> str:
    """The YAML of a preset; its first line is a comment that describes it."""
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(source: str | Path = DEFAULT_PRESET, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a preset or YAML file, with `overrides` by dotted key (text is read like YAML)."""
    values = file_values(source)
    for name, value in (overrides or {}).items():
        known = known_key(name, name)
        values[known] = read_value(known, value)
    return config_from_values(values)


def config_from_dict(nested: Mapping[str, Any]) -> Config:
    """The Config that `Config.to_dict` was called on."""
    return config_from_values(_read_all(_flatten(nested, where=None)))


def config_from_values(values: Mapping[str, Any]) -> Config:
    """A Config from {dotted key: value of the key's type}; keys with a default may be left out."""
    for key in config_keys().values():
        if key.name not in values and key.default is MISSING:
            raise UserError(
                key.name,
                None,
                f"is required ({key.doc}): set it, or start from a preset with `preset: {DEFAULT_PRESET}`",
            )
    return _build(Config, "", values)


def _build(kind: type, prefix: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - an instance of kind
    given = {}
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            given[name] = _build(hint, f"{prefix}{name}.", values)
        elif prefix + name in values:
            given[name] = values[prefix + name]
    return kind(**given)


def file_values(source: str | Path) -> dict[str, Any]:
    """{dotted key: value} of a preset or a YAML file, over the preset that the file starts from."""
    if str(source) in preset_names():
        return _read_all(_flatten(yaml.safe_load(preset_text(str(source))), where=None))
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or "/" in str(source):
            raise UserError(path, None, "no such YAML file" if not path.is_dir() else "is a folder: give a YAML file")
        raise UserError("preset", str(source), f"not one of {', '.join(preset_names())}, nor a YAML file")
    nested = _read_yaml(path)
    base = nested.pop("preset", None)
    if base is not None and base not in preset_names():
        raise UserError(f"{path}: preset", base, f"must be one of {', '.join(preset_names())}")
    own = _read_all(_flatten(nested, where=path), where=path)
    return (file_values(base) if base is not None else {}) | own


def _read_yaml(path: Path) -> dict[Any, Any]:
    data = read_bounded(path, _LARGEST_FILE)
    try:
        text = data.decode("utf-8")
        if fault := _bomb(text):
            raise UserError(path, None, f"{fault}: write the values out")
        nested = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or type(error).__name__
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(path, None, f"is not readable as YAML ({reason}{line})") from None
    except (ValueError, ArithmeticError, LookupError) as error:  # a date, a number of 5,000 digits, an empty !!int
        if isinstance(error, UserError):
            raise
        raise UserError(path, None, f"is not readable as YAML ({first_line(error)})") from None
    if not isinstance(nested, dict):
        raise UserError(path, None, "must hold `key: value` lines")
    return nested


def _bomb(text: str) -> str | None:
    """What of a YAML text may take any time and memory to read; None where nothing does."""
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        opens = isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken)
        opens = opens or isinstance(token, yaml.BlockSequenceStartToken | yaml.BlockMappingStartToken)
        closes = isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken | yaml.BlockEndToken)
        depth += opens - closes
        if depth > _DEEPEST:
            return f"holds YAML nested more than {_DEEPEST} deep"
        if isinstance(token, yaml.AliasToken):
            return "holds YAML aliases (*name), which are not read"
    return None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader (no tags), which also refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", name.start_mark)
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name.value!r} stands twice", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def _flatten(nested: Mapping[Any, Any], where: Path | None, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value as written}; `where` is the file, for the error."""
    flat = {}
    for name, value in nested.items():
        dotted = f"{prefix}{name}"
        inner = _flatten(value, where, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
        for key in inner:
            if key in flat:
                raise UserError(_at(where, key), None, "stands twice: keep one")
        flat |= inner
    return flat


def _read_all(flat: Mapping[str, Any], where: Path | None = None) -> dict[str, Any]:
    return {name: read_value(known_key(name, _at(where, name)), value, where) for name, value in flat.items()}


def _at(where: Path | None, name: str) -> str:
    return name if where is None else f"{where}: {name}"


def known_key(name: str, shown: str) -> str:
    """`name`, if it is a dotted key; else the UserError (about `shown`) names the nearest one."""
    keys = config_keys()
    if name in keys:
        return name
    inside = [key for key in keys if key.startswith(f"{name}.")]
    if inside:
        raise UserError(shown, None, f"is a section: give its keys, such as {inside[0]}")
    close = difflib.get_close_matches(name[:100], keys, n=1, cutoff=0.6)
    close = close or [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    hint = f"did you mean {close[0]}?" if close else "see --help for the keys"
    raise UserError(shown, None, f"no such key; {hint}")


def read_value(name: str, value: object, where: Path | None = None) -> object:
    """A known key's value from text or YAML, as the key's type. jsonargparse decides what is acceptable."""
    kind = config_keys()[name].kind
    optional = NoneType in get_args(kind)
    if value is None and not optional:
        raise UserError(_at(where, name), "null", f"must be {_describe(kind)}")
    if optional and isinstance(value, str) and value.strip() in ("null", "None", "~"):
        return None
    texts = value if isinstance(value, list | tuple) else [value]
    for text in (text for text in texts if isinstance(text, str)):
        if len(text) > _LONGEST_TEXT or "\0" in text:
            raise UserError(
                _at(where, name), _short(text), f"must be {_describe(kind)}, of {_LONGEST_TEXT} characters at most"
            )
        with suppress(yaml.YAMLError):  # what is no YAML is text
            if fault := _bomb(text):
                raise UserError(_at(where, name), _short(text), f"{fault}; must be {_describe(kind)}")
    try:
        return _reader(name).parse_object({"value": value}, defaults=False)["value"]
    except Exception:  # jsonargparse's own, and what Python raises over numbers without measure
        raise UserError(_at(where, name), _short(value), f"must be {_describe(kind)}") from None


@cache
def _reader(name: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=config_keys()[name].kind)
    return parser


def _short(value: object) -> object:
    """The value, or the beginning of its text where that is long."""
    try:
        text = str(value)
    except ValueError:  # an integer of thousands of digits
        return value
    return value if len(text) <= 80 else text[:80] + "..."


def _describe(kind: object) -> str:
    """A type in words."""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        NoneType: "null",
    }
    if kind in words:
        return words[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(arguments)}"
    if get_origin(kind) is tuple:
        example = {
            int: "[32, 64]",
            float: "[0.9, 0.99]",
            bool: "[false, true]",
            str: "[student@1, student@2]",
        }
        return f"a list such as {example[arguments[0]]}"
    return " or ".join(_describe(argument) for argument in arguments)
