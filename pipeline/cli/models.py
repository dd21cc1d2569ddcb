"""The command that makes somebody's model readable here: `fewstep convert`."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.pipeline.cli.arguments import Parser, check_parent

_CONVERT = """Copy a diffusers model of whose weights there is only a pickle (.bin, .pt, .pth or .ckpt), with the same
weights as safetensors. The pickle is read in a process of its own, by a reader that runs no code. What holds anything
but tensors, or others than its configuration's, is refused, and nothing is written."""


def convert(argv: Sequence[str]) -> None:
    """`fewstep convert MODEL -o DIR`."""
    parser = Parser(prog="fewstep convert", description=_CONVERT)
    parser.add_argument("model", metavar="MODEL", help="a diffusers model's folder or hub id")
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="a new folder")
    parser.add_argument("--revision", metavar="NAME", help="of a hub id: a branch, a tag or a commit")
    given = parser.parse_args(argv)
    check_parent(given.out)
    from fewstep.pipeline.stages import convert

    convert.convert(given.model, given.out, given.revision)
