"""`fewstep sample` and `fewstep report`: the commands that take the folder of a run."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fewstep.errors import UserError
from fewstep.pipeline.config_checks import whole

_MOST_IMAGES = 2**20  # each image of a seed has its own generator: eval/noise.py
_SEEDS = 4096


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        where, _, text = message.removeprefix("argument ").partition(": ")
        if not message.startswith("argument ") or not text:
            where, text = self.prog, f"{message} (see {self.prog} --help)"
        raise UserError(where, None, text)


def sample(argv: Sequence[str]) -> None:
    """`fewstep sample RUN --num 64 --steps 2 --seed 0 -o DIR`."""
    parser = _Parser(
        prog="fewstep sample",
        description="Make images with the student of a finished run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/digits")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="folder for the images")
    parser.add_argument("--num", metavar="N", type=_whole(1, _MOST_IMAGES), default=64, help="how many images")
    parser.add_argument("--steps", type=int, choices=(1, 2, 4, 8), default=2, help="network evaluations per image")
    parser.add_argument("--seed", metavar="N", type=_whole(0, _SEEDS - 1), default=0, help="seed of the noise")
    parser.add_argument("--labels", metavar="N", type=_whole(0, None), nargs="+", help="classes, used in turn")
    parser.add_argument("--format", choices=("png", "npz"), default="png", help="PNG files and a grid, or one .npz")
    given = parser.parse_args(argv)
    _require_run(given.run)
    from fewstep.pipeline.sample import sample_to_folder

    sample_to_folder(given.run, given.num, given.steps, given.seed, given.labels, given.out, given.format)


def report(argv: Sequence[str]) -> None:
    """`fewstep report RUN`."""
    parser = _Parser(
        prog="fewstep report",
        description="Write the report of a measured run again, from its files alone.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/digits")
    given = parser.parse_args(argv)
    _require_run(given.run)
    from fewstep.pipeline import run

    run.report(given.run)


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(folder, None, "no such run folder: make one with fewstep run")


def _whole(least: int, most: int | None) -> Callable[[str], int]:
    """An argparse type: a whole number in [least, most]."""

    def read(text: str) -> int:
        try:
            value = int(text)
            whole("", value, least=least, most=most)
        except ValueError:
            upper = "" if most is None else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least {least}{upper}") from None
        return value

    return read
