"""The command line: `fewstep COMMAND ...`.

A fault of the user's making is one line on stderr and exit code 2; an interruption is 130; a bug is a
traceback. Nothing heavy is imported before a command needs it.
"""

import errno
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

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
_HELP = """usage: fewstep COMMAND ...

Distil a diffusion teacher into a consistency model that samples in one or a few steps.

commands:
{commands}

fewstep COMMAND --help explains a command. To begin: fewstep run digits"""
COMMANDS = {
    "run": ("runs", "train a teacher, distil it, measure both and write the report: what is missing or stale"),
    "train-teacher": ("runs", "only the teacher: train it, or load and adapt one"),
    "distill": ("runs", "up to the students: distil the teacher"),
    "benchmark": ("runs", "measure a run, or any models and images; --against RESULTS.JSON says what got worse"),
    "reference": ("others", "features of real images as a file, to measure against"),
    "sample": ("others", "make images with a student of a finished run"),
    "export": ("exports", "a student as files for other programs, each checked against stock diffusers"),
    "demo": ("exports", "a page that makes images in the visitor's browser"),
    "push": ("exports", "upload a student and its model card to the Hugging Face hub"),
    "inspect": ("exports", "what a model is and whether it can be distilled, what an exported file was made from"),
    "convert": ("models", "a copy of a model with safetensors weights, where it has only a pickle"),
    "speed": ("speed", "time of training and sampling beside the bare evaluations of the same networks"),
    "rate": ("others", "a page on which people compare images blind, and what they answered"),
    "report": ("others", "write the report of a measured run again"),
    "presets": ("others", "list the configurations that come with fewstep"),
}
"""By command: the module here that has a function of its name, and what it does.

The function takes the arguments after the name and returns the exit code, None for 0.
"""


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
    if os.environ.get("RANK", "0") == "0":  # of several processes of one run the first speaks alone
        print(f"fewstep: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _dispatch(argv: Sequence[str]) -> int:
    for argument in argv:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # how Python spells bytes that are no UTF-8
            raise UserError("argument", argument, "is not UTF-8 text: give the file or folder another name")
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
        print(_HELP.format(commands=lines))
    elif name == "--version":
        from fewstep import __version__

        print(f"fewstep {__version__}")
    elif name in COMMANDS:
        module = import_module(f"fewstep.pipeline.cli.{COMMANDS[name][0]}")
        return getattr(module, name.replace("-", "_"))(rest) or 0
    else:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        raise UserError("command", name, f"no such command; {hint}")
    return 0
