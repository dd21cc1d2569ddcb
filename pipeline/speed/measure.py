"""`fewstep speed`: what training and sampling cost beside the bare evaluations of the network."""

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fewstep.errors import UserError
from fewstep.eval.report.tables import table_markdown
from fewstep.eval.speed.environment import environment
from fewstep.files import write_json
from fewstep.pipeline.config.schema import Config
from fewstep.pipeline.config.teacher import TrainedTeacher
from fewstep.pipeline.speed.sampling import measure_sampling
from fewstep.pipeline.speed.training import Subjects, measure_training
from fewstep.pipeline.stages.context import RunContext
from fewstep.progress import say


def measure_speed(config: Config, blocks: int, methods: Collection[str], out: Path) -> dict[str, Any]:
    """Measure the networks of a configuration, untrained, and write the results to `out`; returns them.

    blocks: of steps, for a median over them. methods: those whose training is measured.

    UserError: the configuration's teacher is not trained here.
    """
    if not isinstance(config.teacher, TrainedTeacher):
        raise UserError("teacher.source", config.teacher.source, "speed is measured of a teacher that is trained here")
    with TemporaryDirectory() as folder:
        run = RunContext(config, Path(folder) / config.name)
        subjects = Subjects(run, config.teacher, next(iter(config.students.values())))
        facts = {
            "name": config.name,
            "environment": environment(run.device),
            "shape": list(run.data.shape),
            "network_parameters": sum(each.numel() for each in subjects.teacher()[0].network.parameters()),
            "precision": config.teacher.train.precision,
        }
        trained = measure_training(subjects, blocks, methods)
        sampled = measure_sampling(subjects, (1, config.eval.throughput_batch_sizes[0]))
    results = facts | trained | {"sampling": sampled}
    write_json(out, results)
    say(f"\n{speed_table(results)}\n\n{out}")
    return results


def speed_table(results: dict[str, Any]) -> str:
    """The results as tables in Markdown."""
    head = "training", "evaluations (gradient / without / derivative)", "ms a step", "floor", "loop / floor", "images/s"
    lines = []
    for name, row in results["training"].items():
        made = row["evaluations"]
        evaluations = f"{made['weights']:.3g} / {made['output'] + made['inputs']:.3g} / {made['derivative']:.3g}"
        times = f"{row['ms']:.1f}", f"{row['floor_ms']:.1f}", _spread(row["ratio"])
        lines.append((name, evaluations, *times, f"{row['images_per_second']:,.0f}"))
    trained = table_markdown(head, lines)
    head = "rival", "beside", "ms a step", "of the floor's rate", "ours", "ours is faster"
    lines = []
    for name, row in results["rivals"].items():
        shares = (f"{100 * row[key]:.0f} %" for key in ("share_of_floor", "ours_share_of_floor"))
        lines.append((name, row["beside"], f"{row['ms']:.1f}", *shares, f"{_spread(row['ours_faster'])}x"))
    rivals = table_markdown(head, lines)
    head = "sampling", "evaluations", "ms an evaluation", "bare", "sampler / bare"
    lines = []
    for name, row in results["sampling"].items():
        times = f"{row['ms_per_evaluation']:.2f}", f"{row['floor_ms']:.2f}", _spread(row["ratio"])
        lines.append((name, f"{row['evaluations']:,}", *times))
    return "\n".join([trained, rivals, table_markdown(head, lines), _where(results)])


def _where(results: dict[str, Any]) -> str:
    """What was measured, on what, and what batches, logs and arithmetic are of it."""
    where, overhead, arithmetic = results["environment"], results["overhead"], results["arithmetic"]
    size, parameters = "x".join(map(str, results["shape"])), results["network_parameters"] / 1e6
    share, rate = 100 * overhead["share_of_step"], arithmetic["flops"] / 1e12
    device = where["device"] if where["device"] != "cpu" else f"{where['processor']}, {where['threads']} threads"
    return (
        f"{device}; images of {size}, {parameters:.2f} M parameters, {results['precision']}. "
        f"Batches and logs take {share:.2f} % of the teacher's step; its floor computes {rate:.3g} TFLOP/s, "
        f"{100 * arithmetic['share']:.0f} % of what products of large matrices reach. Ratios: median (quartiles)."
    )


def _spread(ratio: dict[str, Any]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(ratio["median"], *ratio["quartiles"])
