"""The commands that take no configuration: `fewstep sample`, `rate`, `report`, `reference` and `presets`."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.eval.seeds import BLOCK_IMAGES, BLOCKS, RESULT_BLOCKS
from fewstep.pipeline.cli.arguments import (
    Parser,
    add_run,
    add_student,
    check_parent,
    key_help,
    number,
    overrides,
    require_run,
)
from fewstep.pipeline.config.evaluation import JudgeConfig
from fewstep.pipeline.config.keys import validated
from fewstep.pipeline.config.reading import load_config, preset_names, preset_text
from fewstep.pipeline.config.schema import DIGITS_SHAPE, DataConfig
from fewstep.pipeline.sampling.grammar import STEPS
from fewstep.progress import say

_REFERENCE_KEYS = ["data.split", "data.image_column", "data.image_size", "data.channels"]
_REFERENCE_KEYS += ["eval.extractor", "eval.weights"]
_REFERENCE = """Compute the features of all images of a split, to measure others against (--eval.reference FILE).

SOURCE is digits, hub:ID, parquet:PATH or imagefolder:PATH. The file names the images (sha256 of their pixels) and
the extractor (sha256 of its weights). The extractor is the one that --eval.extractor names. Without it: digits-cnn
for the 8x8 digits, and for other images inception, or small-cnn if the weights of inception cannot be had."""


def sample(argv: Sequence[str]) -> None:
    """`fewstep sample RUN --num 64 --steps 2 --seed 0 -o DIR`."""
    parser = Parser(prog="fewstep sample", description="Make images with a student of a finished run.")
    add_run(parser)
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="folder for the images")
    add_student(parser)
    parser.add_argument(
        "--num", metavar="N", type=number(int, ge=1, le=BLOCK_IMAGES), default=64, help="images; default: 64"
    )
    parser.add_argument("--steps", type=int, choices=STEPS, default=2, help="network evaluations; default: 2")
    parser.add_argument(
        "--seed", metavar="N", type=number(int, ge=0, le=BLOCKS - 1), default=0, help="of the noise; default: 0"
    )
    parser.add_argument("--labels", metavar="N", type=number(int, ge=0), nargs="+", help="classes, used in turn")
    parser.add_argument("--format", choices=("png", "npz"), default="png", help="PNG files and a grid, or one .npz")
    given = parser.parse_args(argv)
    require_run(given.run)
    from fewstep.pipeline.sampling import sample

    arguments = (given.run, given.num, given.steps, given.seed, given.labels, given.out, given.format, given.student)
    sample.sample_to_folder(*arguments)


def report(argv: Sequence[str]) -> None:
    """`fewstep report RUN`."""
    description = "Write the report of a measured run again, from its files alone."
    parser = Parser(prog="fewstep report", description=description)
    add_run(parser)
    given = parser.parse_args(argv)
    require_run(given.run)
    from fewstep.pipeline.stages import run

    run.report(given.run)


def rate(argv: Sequence[str]) -> None:
    """`fewstep rate RUN` writes the page, `fewstep rate --collect FILE ...` reads its answers."""
    parser = Parser(
        prog="fewstep rate",
        usage="fewstep rate RUN [--student NAME] [--pairs N] [--steps N] [--seed N] [-o FILE] | "
        "fewstep rate --collect FILE ...",
        description="Ask people: a page that shows pairs of images blind and takes answers by keyboard. No server.",
    )
    add_run(parser, nargs="?")
    add_student(parser)
    parser.add_argument(
        "--pairs", metavar="N", type=number(int, ge=1, le=1000), default=40, help="of each kind; default: 40"
    )
    parser.add_argument("--steps", type=int, choices=STEPS, default=1, help="of the student; default: 1")
    seed = number(int, ge=0, le=RESULT_BLOCKS - 1)
    parser.add_argument("--seed", metavar="N", type=seed, default=100, help="of the noise; default: 100")
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
    require_run(given.run)
    out = given.out or given.run / "rate.html"
    check_parent(out)
    from fewstep.pipeline.stages.rate import write_rating_page

    numbers = {"pairs": given.pairs, "steps": given.steps, "seed": given.seed}
    write_rating_page(given.run, given.student, **numbers, out=out)


def reference(argv: Sequence[str]) -> None:
    """`fewstep reference SOURCE -o FILE [--KEY VALUE ...]`: features of real images, kept with their provenance."""
    parser = Parser(
        prog="fewstep reference",
        usage="fewstep reference SOURCE -o FILE [--KEY VALUE ...]",
        description=_REFERENCE,
        epilog="settings:\n" + key_help(_REFERENCE_KEYS, {}),
    )
    parser.add_argument("source", metavar="SOURCE", help="the data, as in data.source")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, required=True, help="a new .safetensors file")
    what = "leave out the images that a run makes its choices on: the reference of a run without data.reference_split"
    parser.add_argument("--without_choices", action="store_true", help=what)
    given, rest = parser.parse_known_args(argv)
    values: dict[str, dict[str, object]] = {"data": {"source": given.source}, "eval": {}}
    for key, value in overrides(rest, _REFERENCE_KEYS, "a reference").items():
        values[key.partition(".")[0]][key.partition(".")[2]] = value
    if given.out.suffix != ".safetensors":
        raise UserError("--out", str(given.out), "must be a .safetensors file")
    if given.out.exists():
        raise UserError("--out", str(given.out), "exists already: give a new file, or remove it")
    check_parent(given.out)
    data = validated(DataConfig, values["data"], "data.")
    small = data.source == "digits" and data.image_size in (None, DIGITS_SHAPE[1])
    judge = validated(JudgeConfig, {"extractor": "digits-cnn" if small else "inception"} | values["eval"], "eval.")
    from fewstep.pipeline.stages.reference import make_reference

    named = judge.extractor if small or "extractor" in values["eval"] else None
    make_reference(data, named, judge.weights, given.out, without_choices=given.without_choices)


def presets(argv: Sequence[str]) -> None:
    """Print the presets: name, description, data."""
    if argv and argv[0] not in ("-h", "--help"):
        raise UserError(argv[0], None, "fewstep presets takes no arguments")
    width = max(map(len, preset_names())) + 2
    for name in preset_names():
        print(f"{name:<{width}}{preset_text(name).partition(chr(10))[0].removeprefix('# ')}")
        print(f"{'':<{width}}data: {load_config(name).data.source}")
    print("\nfewstep run NAME --print_config shows one in full; fewstep run NAME --help explains its keys.")
