"""`fewstep benchmark SUBJECT ...`: any mixture of models and images under one protocol."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.pipeline.cli.arguments import key_help, overrides
from fewstep.pipeline.cli.parser import Parser
from fewstep.pipeline.config.checks import distinct
from fewstep.pipeline.config.reading import preset_names
from fewstep.pipeline.config.schema import DataConfig, EvalConfig

KEYS = (
    "eval.reference",
    "eval.extractor",
    "eval.inception_weights",
    "eval.dinov2_weights",
    "eval.images",
    "eval.seed_blocks",
    "eval.ddpm_seed_blocks",
    "eval.batch_size",
    "eval.training_features",
    "eval.kid_subset_size",
    "eval.latency_runs",
    "eval.latency_seconds",
    "eval.throughput_batch_sizes",
)
DEFAULTS: dict[str, Any] = {"images": 5000, "kid_subset_size": 1000, "throughput_batch_sizes": (1, 16, 64, 256)}
AGAINST = {
    "--against": "an earlier results.json: say what got better or worse, exit code 1 on a regression",
    "--bound": "share by which a Frechet distance may be worse than there; default: 0.05",
}
_DESCRIPTION = """Measure models and images under one protocol: quality, and time where there is a model to run.

A SUBJECT is one of
  RUN/teacher@SOLVER:N   a DDPMPipeline folder; SOLVER is ddpm, ddim, dpmsolver++, unipc or heun
  RUN/student@N          a ConsistencyModelPipeline folder at N steps
  FOLDER@N               any other diffusers pipeline that makes images, or a hub id; @unipc:N exchanges its scheduler
  FILE.onnx, FILE.pt2    a one-step generator: `noise` [B, C, H, W] to images in [-1, 1]; a .pt2 is torch.export's
  FOLDER, FILE.npz       images: of any format; uint8 [N, H, W, C]
Results are kept in the folder of -o and are not made again while the subject and the protocol stay the same."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `fewstep benchmark SUBJECT ...` was asked for."""

    subjects: tuple[str, ...]
    eval: EvalConfig
    reference: Path
    training: DataConfig | None
    out: Path
    trust: bool  # open a .pt2 that no manifest of fewstep vouches for
    command: str


def is_comparison(argv: Sequence[str]) -> bool:
    """Whether the arguments begin with a subject, not with a preset, a YAML file or a setting."""
    first = argv[0] if argv else "-"
    return not (first.startswith("-") or first in preset_names() or Path(first).suffix in (".yaml", ".yml"))


def comparison_from_arguments(argv: Sequence[str]) -> Comparison:
    """The arguments, checked; UserError names what is wrong or missing."""
    count = next((index for index, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    parser = Parser(
        prog="fewstep benchmark",
        usage="fewstep benchmark SUBJECT ... --eval.reference FILE [-o DIR] [--KEY VALUE ...]",
        description=_DESCRIPTION,
        epilog=key_help(KEYS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, default=Path("benchmark"), help="default: benchmark/")
    parser.add_argument("--training", metavar="SOURCE", help="training images (parquet:PATH, ...), to look for copies")
    parser.add_argument("--trust", action="store_true", help="open a .pt2 that others made: it can run any code")
    for option, text in AGAINST.items():  # taken out by split_against before: here for the help
        parser.add_argument(option, help=text)
    given, rest = parser.parse_known_args(argv[count:])
    subjects = tuple(argv[:count])
    distinct("subjects", subjects)
    values: dict[str, Any] = {
        key.removeprefix("eval."): value for key, value in overrides(rest, KEYS, "a benchmark of subjects").items()
    }
    reference = values.pop("reference", None)
    if reference is None:
        raise UserError("eval.reference", None, "is required: fewstep reference SOURCE -o FILE makes one")
    from fewstep.eval.quality.reference_files import check_reference_path, reference_extractor

    reference = reference.expanduser()
    check_reference_path(reference)
    section: dict[str, Any] = DEFAULTS | {"extractor": reference_extractor(reference) or "inception"} | values
    section["kid_subset_size"] = min(section["kid_subset_size"], section["images"])
    return Comparison(
        subjects=subjects,
        eval=EvalConfig(**section),
        reference=reference,
        training=given.training and DataConfig(source=given.training),
        out=given.out,
        trust=given.trust,
        command=shlex.join(["fewstep", "benchmark", *argv]),
    )
