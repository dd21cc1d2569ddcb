"""The commands that take a configuration: `fewstep run`, `train-teacher`, `distill` and `benchmark`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.pipeline.cli.arguments import Parser, config_from_arguments, key_help, number, overrides
from fewstep.pipeline.config.constraints import distinct
from fewstep.pipeline.config.evaluation import EvalConfig
from fewstep.pipeline.config.keys import validated
from fewstep.pipeline.config.reading import preset_names
from fewstep.pipeline.config.schema import DataConfig
from fewstep.progress import say

SUBJECT_KEYS = [f"eval.{name}" for name in EvalConfig.model_fields if name != "samplers"]
SUBJECT_DEFAULTS = {"images": 5000, "throughput_batch_sizes": [1, 16, 64, 256]}
_SUBJECTS = """Measure models and images under one protocol: quality, and time where there is a model to run.

A SUBJECT is one of
  RUN/teacher@SOLVER:N        a DDPMPipeline folder; SOLVER is ddpm, ddim, dpmsolver++, unipc or heun
  RUN/students/NAME@N         a student's folder (ConsistencyModelPipeline, DDIMPipeline) at N steps
  FOLDER@N                    any other diffusers pipeline of images, or a hub id; @unipc:N exchanges its scheduler
  FILE.onnx, FILE.pt2         a one-step generator: `noise` [B, C, H, W] to images in [-1, 1]; a .pt2 is torch.export's
  FOLDER, FILE.npz            images: of any format; uint8 [N, H, W, C]
Results are kept in the folder of -o and are not made again while the subject and the protocol stay the same."""
_AGAINST = {
    "--against": "an earlier results.json: say what got better or worse, exit code 1 on a regression",
    "--bound": "share by which a Frechet distance may be worse than there; default: 0.05",
}


def run(argv: Sequence[str]) -> None:
    """All stages."""
    _stages("run", "report", argv)


def train_teacher(argv: Sequence[str]) -> None:
    """The teacher alone."""
    _stages("train-teacher", "teacher", argv)


def distill(argv: Sequence[str]) -> None:
    """Up to the students."""
    _stages("distill", "student", argv)


def _stages(command: str, until: str, argv: Sequence[str]) -> Path | None:
    """Run the stages of a configuration up to and including `until`; the run's folder, None where nothing was run."""
    from fewstep.pipeline.cli.main import COMMANDS

    config = config_from_arguments(f"fewstep {command}", COMMANDS[command][1], argv)
    if config is None:
        return None
    from fewstep.pipeline.stages import run

    try:
        return run.run(config, until)
    except OSError as error:
        if error.filename is None:  # a full disk is noticed while writing, where the system names no file
            error.filename = str(config.folder)
        raise


def benchmark(argv: Sequence[str]) -> int:
    """A run's stages up to the measurements, or a benchmark of subjects, and what --against asks for.

    1 where a Frechet distance regressed by more than the bound.
    """
    parser = Parser(prog="fewstep benchmark", add_help=False)
    parser.add_argument("--against", type=Path)
    share = number(float, ge=0, allow_inf_nan=False, title="a share of 0 or more, such as 0.05")
    parser.add_argument("--bound", type=share)
    given, rest = parser.parse_known_args(argv)
    if given.against is None and given.bound is not None:
        raise UserError("--bound", given.bound, "is the bound of a comparison: give --against RESULTS.JSON too")
    if given.against is not None and not {"-h", "--help", "--print_config"} & set(rest):
        from fewstep.eval.report.regression import read_results

        read_results(given.against)
    first = rest[0] if rest else "-"
    if not (first.startswith("-") or first in preset_names() or Path(first).suffix in (".yaml", ".yml")):
        folder = _subjects(rest)
    else:
        folder = _stages("benchmark", "evaluate", rest)
        if folder is None:
            if {"-h", "--help"} & set(rest):
                print("".join(f"\n  {option} VALUE\n      {text}" for option, text in _AGAINST.items()))
                print("\nModels and images of any origin: fewstep benchmark SUBJECT --help")
            return 0
        folder = folder / "eval"
    return 0 if given.against is None else _compare(folder, given.against, given.bound)


def _compare(folder: Path, earlier: Path, bound: float | None) -> int:
    """Print how what a benchmark left in a folder compares with earlier results; the exit code."""
    from fewstep.eval.report.regression import compare, comparison_text, read_measured, read_results

    bound, now = 0.05 if bound is None else bound, read_measured(folder)
    changes = compare(read_results(earlier), now)
    say("\n".join(comparison_text(changes, now["benchmark"]["metric_name"], bound)))
    return int(any(change.regressed(bound) for change in changes))


def _subjects(argv: Sequence[str]) -> Path:
    """Measure the subjects that the arguments begin with; the folder of the results."""
    count = next((index for index, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    shown = {f"eval.{key}": value for key, value in SUBJECT_DEFAULTS.items()}
    parser = Parser(
        prog="fewstep benchmark",
        usage="fewstep benchmark SUBJECT ... --eval.reference FILE [-o DIR] [--KEY VALUE ...]",
        description=_SUBJECTS,
        epilog=f"settings:\n{key_help(SUBJECT_KEYS, shown)}",
    )
    parser.add_argument("-o", "--out", metavar="DIR", type=Path, default=Path("benchmark"), help="default: benchmark/")
    parser.add_argument("--training", metavar="SOURCE", help="training images (parquet:PATH, ...), to look for copies")
    parser.add_argument("--trust", action="store_true", help="open a .pt2 that others made: it can run any code")
    for option, text in _AGAINST.items():  # taken out before: here for the help
        parser.add_argument(option, help=text)
    given, rest = parser.parse_known_args(argv[count:])
    subjects = list(argv[:count])
    distinct("subjects", subjects)
    given_keys = overrides(rest, SUBJECT_KEYS, "a benchmark of subjects")
    values = {key.removeprefix("eval."): value for key, value in given_keys.items()}
    if values.get("reference") is None:
        raise UserError("eval.reference", None, "is required: fewstep reference SOURCE -o FILE makes one")
    from fewstep.eval.quality.reference_files import check_reference_path, reference_extractor

    reference = Path(values["reference"]).expanduser()
    check_reference_path(reference)
    section = SUBJECT_DEFAULTS | {"extractor": reference_extractor(reference) or "inception"} | values
    settings = validated(EvalConfig, section, "eval.")
    training = given.training and validated(DataConfig, {"source": given.training}, "data.")
    from fewstep.pipeline.stages.table import compare_subjects

    command = shlex.join(["fewstep", "benchmark", *argv])
    return compare_subjects(subjects, settings, reference, training, given.out, command, trust=given.trust)
