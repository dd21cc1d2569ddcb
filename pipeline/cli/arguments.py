"""`fewstep run [PRESET_OR_YAML] [--KEY VALUE ...]`: the arguments of commands that take a configuration."""

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser

from fewstep.errors import UserError
from fewstep.pipeline.config.reading import (
    DEFAULT_PRESET,
    config_from_values,
    config_keys,
    file_values,
    known_key,
    preset_names,
    read_value,
)
from fewstep.pipeline.config.schema import Config, jsonable

_METAVARS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
_DESCRIPTION = (
    "{line}. PRESET_OR_YAML is a preset ({presets}) or a YAML file with any of the keys below, nested or "
    "dotted; a file may start from a preset with a line `preset: NAME`. --KEY VALUE overrides either; values "
    "are read like YAML: --data.image_size null, --teacher.network.channels '[32, 64]'. The defaults below "
    "are those of {source}."
)


def config_from_arguments(prog: str, line: str, argv: Sequence[str]) -> Config | None:
    """The Config of a preset or YAML file with overrides; None where help or the Config was printed."""
    source, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (DEFAULT_PRESET, argv)
    values = file_values(source)
    if "-h" in rest or "--help" in rest:
        print(_help(prog, line, source, values), end="")
        return None
    given, print_only = _overrides(rest)
    config = config_from_values(values | given)
    if print_only:
        print(config_yaml(config), end="")
        return None
    weights = config.eval.extractor_weights
    if weights is not None and not weights.expanduser().is_file():
        raise UserError(f"eval.{config.eval.extractor}_weights", str(weights), "no such file")
    return config


def config_yaml(config: Config) -> str:
    """A configuration as YAML that `fewstep run FILE` reads."""
    return yaml.dump(config.to_dict(), Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists on one line."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def overrides(arguments: Sequence[str], keys: Sequence[str], what: str) -> dict[str, Any]:
    """{key: value} of `--KEY VALUE` for a command that knows only some of the keys, `what` it makes."""
    found, print_only = _overrides(arguments)
    if print_only:
        raise UserError("--print_config", None, f"has no effect on {what}: leave it out")
    for key, value in found.items():
        if key not in keys:
            raise UserError(key, jsonable(value), f"has no effect on {what}: leave it out")
    return found


def key_help(keys: Sequence[str]) -> str:
    """The keys with their documentation, as lines under a command's help."""
    known = config_keys()
    return "\n".join(["settings:", *(f"  --{key} VALUE\n      {known[key].doc}" for key in keys)])


def _overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """{dotted key: value} of `--KEY VALUE` and `--KEY=VALUE`, and whether --print_config was among them."""
    found: dict[str, Any] = {}
    print_only = False
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--print_config":
            print_only = True
            continue
        if not argument.startswith("--"):
            remedy = "not understood: the preset or YAML file comes first, settings are --KEY VALUE"
            raise UserError("argument", argument, remedy)
        name, assigned, value = argument[2:].partition("=")
        key = known_key(name, f"--{name}")
        if not assigned:
            if not rest or rest[0].startswith("--"):
                raise UserError(key, None, f"needs a value: --{key} VALUE")
            value = rest.pop(0)
        if key in found:
            raise UserError(key, value, "is given twice: keep one")
        found[key] = read_value(key, value)
    return found, print_only


def _help(prog: str, line: str, source: str, values: Mapping[str, Any]) -> str:
    """Every key with its documentation, type and value in `source`, by section."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [PRESET_OR_YAML] [--KEY VALUE ...] [--print_config]",
        description=_DESCRIPTION.format(
            line=line[0].upper() + line[1:], presets=", ".join(preset_names()), source=source
        ),
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", default=SUPPRESS, help="show this and exit")
    parser.add_argument(
        "--print_config",
        action="store_true",
        default=SUPPRESS,
        help="print the resolved configuration and exit",
    )
    groups: dict[str, Any] = {}
    for key in config_keys().values():
        title = key.name.rpartition(".")[0] or "the run"
        group = groups.get(title)
        if group is None:
            group = groups[title] = parser.add_argument_group(title, key.section)
        default = values.get(key.name, key.default)
        default = None if default is MISSING else jsonable(default)
        kinds = get_args(key.kind) if get_origin(key.kind) is UnionType else (key.kind,)
        metavar = next((mark for kind, mark in _METAVARS.items() if kind in kinds), None)
        shown: dict[str, Any] = {} if metavar is None else {"metavar": metavar}
        group.add_argument(f"--{key.name}", type=key.kind, default=default, help=key.doc, **shown)
    return parser.format_help()
