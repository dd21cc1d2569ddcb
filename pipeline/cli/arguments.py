"""What the commands' arguments share: `--KEY VALUE` for the keys of the configuration, argparse for all others."""

import argparse
import textwrap
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fewstep.errors import UserError
from fewstep.files import flatten
from fewstep.pipeline.config import reading
from fewstep.pipeline.config.keys import DEFAULT_PRESET, config_keys, no_such_key, sections
from fewstep.pipeline.config.schema import Config
from fewstep.settings import in_words

_HELP = """usage: {prog} [PRESET_OR_YAML] [--KEY VALUE ...] [--print_config]

{line}. PRESET_OR_YAML is a preset ({presets}) or a YAML file with any of the keys below, nested or dotted; a file may \
start from a preset with a line `preset: NAME`. --KEY VALUE overrides either; values are read like YAML: \
--data.image_size null, --teacher.network.channels '[32, 64]'. Several students: students.NAME.KEY is student.KEY of \
one of them, student.KEY that of all. The values below are those of {source}.

options:
  -h, --help      show this and exit
  --print_config  print the resolved configuration and exit
"""


def config_from_arguments(prog: str, line: str, argv: Sequence[str]) -> Config | None:
    """The Config of a preset or YAML file with overrides; None where help or the Config was printed."""
    source, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (DEFAULT_PRESET, argv)
    layers = reading.file_layers(source)
    if "-h" in rest or "--help" in rest:
        known = ", ".join(reading.preset_names())
        text = _HELP.format(prog=prog, line=line[:1].upper() + line[1:], presets=known, source=source)
        print("\n".join(textwrap.fill(each, 110, drop_whitespace=False) for each in text.splitlines()))
        values, keys = reading.layered(layers), dict(config_keys())
        values = flatten({**values, "student": next(iter(values.pop("students").values()))})
        for prefix, kind in sections():
            inside = [key for key in (prefix + name for name in kind.model_fields) if keys.pop(key, None)]
            if inside:
                print(f"\n{prefix.removesuffix('.') or 'the run'}: {(kind.__doc__ or '').partition(chr(10))[0]}")
                print(key_help(inside, values))
        return None
    given = overrides([argument for argument in rest if argument != "--print_config"])
    config = reading.config_from_layers([*layers, (None, given)])
    if "--print_config" in rest:
        print(reading.config_yaml(config), end="")
        return None
    weights = config.eval.weights
    if weights is not None and not weights.expanduser().is_file():
        raise UserError("eval.weights", str(weights), "no such file")
    return config


def overrides(arguments: Sequence[str], keys: Collection[str] | None = None, what: str = "") -> dict[str, Any]:
    """{dotted key: value} of `--KEY VALUE` and `--KEY=VALUE`.

    With `keys`, for a command that knows no others; `what` it makes.
    """
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, assigned, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            remedy = "not understood: the preset or YAML file comes first, settings are --KEY VALUE"
            raise UserError("argument", argument, remedy)
        if not assigned and argument != "--print_config":
            if not rest or rest[0].startswith("--"):
                raise UserError(key, None, f"needs a value: --{key} VALUE")
            value = rest.pop(0)
        if key in found:
            raise UserError(key, value, "is given twice: keep one")
        found[key] = reading.read_text(key, value)
        if keys is not None and key not in keys:
            known = key in config_keys() or argument == "--print_config"
            remedy = f"has no effect on {what}: leave it out" if known else no_such_key(key, {})
            raise UserError(key, found[key], remedy)
    return reading.flat(found)


def key_help(keys: Sequence[str], values: dict[str, Any]) -> str:
    """The keys with their documentation, what their values must be, and those that they have."""
    lines = []
    for key in keys:
        field = config_keys()[key]
        value = values.get(key, None if field.is_required() else field.get_default())
        shown = list(value) if isinstance(value, tuple) else "null" if value is None else value
        lines.append(f"  --{key} VALUE")
        lines.append(textwrap.indent(textwrap.fill(f"{field.description} ({in_words(field)}; {shown})", 104), " " * 6))
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are UserErrors instead of a usage text."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as argparse's own
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        where, _, text = message.removeprefix("argument ").partition(": ")
        if not message.startswith("argument ") or not text:
            where, text = self.prog, f"{message} (see {self.prog} --help)"
        raise UserError(where, None, text)


def number(kind: type, **limits: Any) -> Callable[[str], Any]:  # noqa: ANN401 - as pydantic's Field
    """An argparse type: a number within the limits of a pydantic Field."""
    annotation: Any = Annotated[kind, Field(**limits)]

    def read(text: str) -> Any:  # noqa: ANN401 - of that kind
        try:
            return TypeAdapter(annotation).validate_python(text)
        except ValidationError:
            remedy = f"must be {in_words(FieldInfo.from_annotation(annotation))}"
            raise argparse.ArgumentTypeError(f"{text!r}: {remedy}") from None

    return read


def check_parent(out: Path, option: str = "--out") -> None:
    """UserError where the folder that a file is to be written into does not exist."""
    if not out.absolute().parent.is_dir():
        raise UserError(option, str(out), f"there is no folder {out.parent}: make it first")


def add_run(parser: Parser, nargs: str | None = None) -> None:
    """RUN, the folder of a run."""
    parser.add_argument("run", metavar="RUN", type=Path, nargs=nargs, help="folder of the run, such as runs/digits")


def add_student(parser: Parser) -> None:
    """--student NAME."""
    parser.add_argument("--student", metavar="NAME", help="which one, where the run has several")


def require_run(folder: Path) -> None:
    """UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(folder, None, "no such run folder: make one with fewstep run")
