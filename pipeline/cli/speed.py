"""`fewstep speed`."""

import os
from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.pipeline.cli.arguments import Parser, check_parent, config_from_arguments, number
from fewstep.students.methods import METHODS

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # before torch is loaded: its profiler speaks of GPUs that are not there
_OPTIONS = {
    "-o FILE, --results FILE": "where the results go, as JSON; default: speed.json",
    "--blocks N": "blocks of 20 steps that each is measured over, in turn; default: 8",
    "--methods NAME,NAME": "methods whose training is measured beside the teacher's; default: all",
}


def speed(argv: Sequence[str]) -> None:
    """`fewstep speed [PRESET_OR_YAML] [-o FILE] [--blocks N] [--KEY VALUE ...]`."""
    from fewstep.pipeline.cli.main import COMMANDS

    parser = Parser(prog="fewstep speed", add_help=False)
    parser.add_argument("-o", "--results", type=Path, default=Path("speed.json"))
    parser.add_argument("--blocks", type=number(int, ge=2, le=1000, title="a whole number of 2 to 1000"), default=8)
    parser.add_argument("--methods")
    given, rest = parser.parse_known_args(argv)
    methods = METHODS if given.methods is None else given.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError("--methods", unknown[0], f"must be of {', '.join(METHODS)}")
    config = config_from_arguments("fewstep speed", COMMANDS["speed"][1], rest)
    if config is None:
        if {"-h", "--help"} & set(rest):
            print("".join(f"\n  {option}\n      {text}" for option, text in _OPTIONS.items()))
        return
    check_parent(given.results, "--results")
    from fewstep.pipeline.speed.measure import measure_speed

    measure_speed(config, given.blocks, methods, given.results)
