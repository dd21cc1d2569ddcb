"""`fewstep reference SOURCE -o FILE`: features of real images, computed once and kept with their provenance."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.pipeline.cli.arguments import key_help, overrides
from fewstep.pipeline.cli.parser import Parser, check_parent
from fewstep.pipeline.config.checks import weights_of
from fewstep.pipeline.config.schema import DIGITS_SHAPE, DataConfig

KEYS = ("data.split", "data.image_column", "data.image_size", "data.channels")
ALL_KEYS = (*KEYS, "eval.extractor", "eval.inception_weights", "eval.dinov2_weights")
_DESCRIPTION = """Compute the features of all images of a split, to measure others against (--eval.reference FILE).

SOURCE is digits, hub:ID, parquet:PATH or imagefolder:PATH. The file names the images (sha256 of their pixels) and
the extractor (sha256 of its weights). The extractor is inception, for the 8x8 digits digits-cnn, unless
--eval.extractor names another."""


def reference(argv: Sequence[str]) -> None:
    """`fewstep reference SOURCE -o FILE [--KEY VALUE ...]`."""
    parser = Parser(
        prog="fewstep reference",
        usage="fewstep reference SOURCE -o FILE [--KEY VALUE ...]",
        description=_DESCRIPTION,
        epilog=key_help(ALL_KEYS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="the data, as in data.source")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, required=True, help="a new .safetensors file")
    what = "leave out the images that a run makes its choices on: the reference of a run without data.reference_split"
    parser.add_argument("--without_choices", action="store_true", help=what)
    given, rest = parser.parse_known_args(argv)
    values = overrides(rest, ALL_KEYS, "a reference")
    if given.out.suffix != ".safetensors":
        raise UserError("--out", str(given.out), "must be a .safetensors file")
    if given.out.exists():
        raise UserError("--out", str(given.out), "exists already: give a new file, or remove it")
    check_parent(given.out)
    data = DataConfig(source=given.source, **{key.removeprefix("data."): values[key] for key in KEYS if key in values})
    default = "digits-cnn" if data.source == "digits" and data.image_size in (None, DIGITS_SHAPE[1]) else "inception"
    extractor = values.get("eval.extractor", default)
    weights = weights_of(extractor, {name: values.get(f"eval.{name}_weights") for name in ("inception", "dinov2")})
    from fewstep.pipeline.stages.reference import make_reference

    make_reference(data, extractor, weights, given.out, without_choices=given.without_choices)
