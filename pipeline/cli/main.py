"""The command line: `fewstep COMMAND ...`.

A fault of the user's making is one line on stderr and exit code 2; an interruption is 130; a bug is a
traceback. Nothing heavy is imported before a command needs it.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from fewstep.errors import UserError, printable

_MACHINE_FAULTS = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EACCES: "change its permissions, or give another place",
    errno.EPERM: "change its permissions, or give another place",
    errno.EROFS: "give a place that can be written",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "a link leads to itself, or stands where a file is needed",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or write elsewhere",
    errno.EIO: "the disk or the network cannot be read or written",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a command does, in a line, and the function that does it with the arguments after its name.

    The function returns the exit code, None for 0.
    """

    line: str
    function: Callable[[Sequence[str]], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) is gone: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _MACHINE_FAULTS:
            raise
        return _fail(f"{error.filename or 'disk'}: {error.strerror}: {_MACHINE_FAULTS[error.errno]}")
    return code


def _fail(message: str) -> int:
    print(f"fewstep: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _dispatch(argv: Sequence[str]) -> int:
    for argument in argv:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # how Python spells bytes that are no UTF-8
            raise UserError("argument", argument, "is not UTF-8 text: give the file or folder another name")
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        _print_help()
    elif name == "--version":
        from fewstep import __version__

        print(f"fewstep {__version__}")
    elif name in COMMANDS:
        return COMMANDS[name].function(rest) or 0
    else:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        raise UserError("command", name, f"no such command; {hint}")
    return 0


def _print_help() -> None:
    width = max(map(len, COMMANDS))
    print("usage: fewstep COMMAND ...\n")
    print("Distil a diffusion teacher into a consistency model that samples in one or a few steps.\n")
    print("commands:")
    for name, command in COMMANDS.items():
        print(f"  {name:<{width}}  {command.line}")
    print("\nfewstep COMMAND --help explains a command. To begin: fewstep run digits")


def _stage(name: str, until: str, argv: Sequence[str]) -> Path | None:
    """Run the stages of a configuration up to and including `until`; the run's folder, None where nothing was run."""
    from fewstep.pipeline.cli.arguments import config_from_arguments

    config = config_from_arguments(f"fewstep {name}", COMMANDS[name].line, argv)
    if config is None:
        return None
    from fewstep.pipeline.stages.run import run

    try:
        return run(config, until)
    except OSError as error:
        if error.filename is None:  # a full disk is noticed while writing, where the system names no file
            error.filename = str(config.folder)
        raise


def _stage_command(name: str, until: str, argv: Sequence[str]) -> None:
    _stage(name, until, argv)


def _benchmark(argv: Sequence[str]) -> int:
    """A run's stages up to the measurements, or a benchmark of subjects, and what --against asks for.

    1 where something regressed.
    """
    from fewstep.pipeline.cli.benchmark import AGAINST, comparison_from_arguments, is_comparison
    from fewstep.pipeline.cli.models import against, split_against

    rest, against_what = split_against(argv)
    if is_comparison(rest):
        comparison = comparison_from_arguments(rest)
        from fewstep.pipeline.stages.table import compare_subjects

        folder = compare_subjects(comparison)
    else:
        run = _stage("benchmark", "evaluate", rest)
        if run is None:
            if {"-h", "--help"} & set(rest):
                print("".join(f"\n  {option} VALUE\n      {text}" for option, text in AGAINST.items()))
                print("\nModels and images of any origin: fewstep benchmark SUBJECT --help")
            return 0
        folder = run / "eval"
    return against(folder, against_what) if against_what else 0


def _sample(argv: Sequence[str]) -> None:
    from fewstep.pipeline.cli.models import sample

    sample(argv)


def _reference(argv: Sequence[str]) -> None:
    from fewstep.pipeline.cli.reference import reference

    reference(argv)


def _rate(argv: Sequence[str]) -> None:
    from fewstep.pipeline.cli.models import rate

    rate(argv)


def _report(argv: Sequence[str]) -> None:
    from fewstep.pipeline.cli.models import report

    report(argv)


def _presets(argv: Sequence[str]) -> None:
    """Print the presets: name, description, data."""
    if argv and argv[0] not in ("-h", "--help"):
        raise UserError(argv[0], None, "fewstep presets takes no arguments")
    from fewstep.pipeline.config.reading import load_config, preset_names, preset_text

    for name in preset_names():
        print(f"{name:<14}{preset_text(name).partition(chr(10))[0].removeprefix('# ')}")
        print(f"{'':<14}data: {load_config(name).data.source}")
    print("\nfewstep run NAME --print_config shows one in full; fewstep run NAME --help explains its keys.")


COMMANDS = {
    "run": Command(
        line="train a teacher, distil it, measure both and write the report: what is missing or stale",
        function=partial(_stage_command, "run", "report"),
    ),
    "train-teacher": Command(
        line="only the teacher: train it, or load and adapt one",
        function=partial(_stage_command, "train-teacher", "teacher"),
    ),
    "distill": Command(
        line="up to the student: distil the teacher",
        function=partial(_stage_command, "distill", "student"),
    ),
    "benchmark": Command(
        line="measure a run, or any models and images; --against RESULTS.JSON says what got worse",
        function=_benchmark,
    ),
    "reference": Command(line="features of real images as a file, to measure against", function=_reference),
    "sample": Command(line="make images with the student of a finished run", function=_sample),
    "rate": Command(line="a page on which people compare images blind, and what they answered", function=_rate),
    "report": Command(line="write the report of a measured run again", function=_report),
    "presets": Command(line="list the configurations that come with fewstep", function=_presets),
}
