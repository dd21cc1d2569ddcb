"""`fewstep sample`, `rate` and `report`: the commands that take the folder of a run."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.pipeline.cli.parser import Parser, check_parent
from fewstep.pipeline.config.checks import whole
from fewstep.progress import say

_MOST_IMAGES = 2**20  # each image of a seed has its own generator: eval/noise.py
_SEEDS = 4096


def sample(argv: Sequence[str]) -> None:
    """`fewstep sample RUN --num 64 --steps 2 --seed 0 -o DIR`."""
    parser = Parser(
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
    from fewstep.pipeline.sampling.sample import sample_to_folder

    sample_to_folder(given.run, given.num, given.steps, given.seed, given.labels, given.out, given.format)


def report(argv: Sequence[str]) -> None:
    """`fewstep report RUN`."""
    parser = Parser(
        prog="fewstep report",
        description="Write the report of a measured run again, from its files alone.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as runs/digits")
    given = parser.parse_args(argv)
    _require_run(given.run)
    from fewstep.pipeline.stages import run

    run.report(given.run)


def rate(argv: Sequence[str]) -> None:
    """`fewstep rate RUN` writes the page, `fewstep rate --collect FILE ...` reads its answers."""
    parser = Parser(
        prog="fewstep rate",
        usage="fewstep rate RUN [--pairs N] [--steps N] [--seed N] [-o FILE] | fewstep rate --collect FILE ...",
        description="Ask people: a page that shows pairs of images blind and takes answers by keyboard. No server.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="folder of the run, such as runs/digits")
    parser.add_argument("--pairs", metavar="N", type=_whole(1, 1000), default=40, help="of each kind; default: 40")
    parser.add_argument("--steps", type=int, choices=(1, 2, 4, 8), default=1, help="of the student; default: 1")
    parser.add_argument("--seed", metavar="N", type=_whole(0, _SEEDS - 1), default=100, help="default: 100")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, help="default: RUN/rate.html")
    parser.add_argument("--collect", metavar="FILE", type=Path, nargs="+", help="answers that the page downloaded")
    given = parser.parse_args(argv)
    if (given.run is None) == (given.collect is None):
        raise UserError("fewstep rate", None, "give either a run, to write the page, or --collect FILE ...")
    if given.collect:
        from fewstep.eval.report.rating import collect, rates_text

        rates, remarks = collect(given.collect)
        say("\n".join([*remarks, *rates_text(rates)]))
        return
    _require_run(given.run)
    out = given.out or given.run / "rate.html"
    check_parent(out)
    from fewstep.pipeline.stages.rate import write_rating_page

    write_rating_page(given.run, pairs=given.pairs, steps=given.steps, seed=given.seed, out=out)


@dataclass(frozen=True, kw_only=True)
class Against:
    """The earlier results that a benchmark is compared with, and the regression that is let pass."""

    results: Path
    bound: float


def split_against(argv: Sequence[str]) -> tuple[list[str], Against | None]:
    """The arguments without --against and --bound, and what those two said; the file is looked for at once."""
    parser = Parser(prog="fewstep benchmark", add_help=False, allow_abbrev=False)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--bound", type=_share)
    given, rest = parser.parse_known_args(argv)
    if given.against is None:
        if given.bound is not None:
            raise UserError("--bound", given.bound, "is the bound of a comparison: give --against RESULTS.JSON too")
        return rest, None
    from fewstep.eval.report.regression import read_results

    if not {"-h", "--help", "--print_config"} & set(rest):
        read_results(given.against)
    return rest, Against(results=given.against, bound=0.05 if given.bound is None else given.bound)


def against(folder: Path, against: Against) -> int:
    """Print how what a benchmark left in a folder compares with earlier results.

    1 where a Frechet distance regressed by more than the bound, else 0.
    """
    from fewstep.eval.report.regression import compare, comparison_text, read_measured, read_results

    now = read_measured(folder)
    changes = compare(read_results(against.results), now)
    say("\n".join(comparison_text(changes, now["benchmark"]["metric_name"], against.bound)))
    return int(any(change.regressed(against.bound) for change in changes))


def _share(text: str) -> float:
    """An argparse type: a share, such as 0.05, of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a share of 0 or more, such as 0.05")
    return value


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
