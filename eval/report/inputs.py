"""Read a run folder for its report: every file named, every gap an error that says which command fills it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.eval.quality.protocol import slug
from fewstep.files import flatten, read_json, read_sealed, sha256_json

COMMAND_OF_STAGE = {"teacher": "train-teacher", "students": "distill", "eval": "benchmark"}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a report is made from.

    results: the content of results.json less its headline; grids: PNG bytes of 8x8 images by sampler name
    (a sampler that was only timed may have none); logs: training records by what is trained, in order.
    """

    results: dict[str, Any]
    grids: dict[str, bytes]
    real: bytes
    neighbours: dict[str, Any]
    neighbours_image: bytes
    logs: dict[str, list[dict[str, Any]]]


def read_run(run_dir: Path, commands: Sequence[str]) -> RunFiles:
    """Read a finished run. UserError: a file is missing, or two results have different protocols."""
    config = read_json(_file(run_dir, "config.json"))
    trainings = _trainings(config)
    students = {f"students/{each['name']}": each["stage"] for each in trainings}
    stages = {"teacher": "teacher", **students, "eval": "eval"}
    manifests = {title: read_sealed(_file(run_dir, f"{stage}/manifest.json")) for stage, title in stages.items()}
    read = [_trajectories(each) for each in manifests.values()]
    if (path := run_dir / "trajectories/manifest.json").is_file():  # students do without those they were made of
        made = read_sealed(path)
        if made["inputs"]["trajectories"] in read:
            manifests = {"teacher": manifests["teacher"], "trajectories": made} | manifests
    benchmark = read_json(_file(run_dir, "eval/benchmark.json"))
    files = [_file(run_dir, f"eval/samplers/{slug(name)}.json") for name in benchmark["sampler_order"]]
    samplers = [read_sealed(file) for file in files]
    untrained = ["eval"] if config["teacher"]["source"] == "train" else ["eval", "teacher"]
    logs = {title: _read_log(run_dir, stage) for stage, title in stages.items() if stage not in untrained}
    seconds = {title: each["seconds"] + _earlier_seconds(logs.get(title, [])) for title, each in manifests.items()}
    for sampler in samplers:
        _check_protocol(run_dir, benchmark["protocol"], sampler)
    return RunFiles(
        results={
            "format": 1,
            "name": config["name"],
            "config": config,
            "config_hash": sha256_json(config),
            "commands": list(commands),
            "data": read_json(_file(run_dir, "data.json")),
            "stages": [{"stage": title, "seconds": seconds[title]} for title in manifests],
            "trainings": [each | _cost(manifests[each["stage"]], logs[each["stage"]]) for each in trainings],
            "benchmark": benchmark,
            "samplers": samplers,
        },
        grids=_read_grids(run_dir, samplers),
        real=_file(run_dir, "eval/grids/real.png").read_bytes(),
        neighbours=read_json(_file(run_dir, "eval/neighbours.json")),
        neighbours_image=_file(run_dir, "eval/neighbours.png").read_bytes(),
        logs=logs,
    )


def _trainings(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every training of every student: its name, whose it is, which one from 1, its stage's title, the method."""
    students = config.get("students") or {"student": config["student"]}
    names = [
        (name if number == 1 else f"{name}-{number}", name, number, settings["method"]["name"])
        for name, settings in students.items()
        for number in range(1, settings.get("training_seeds", 1) + 1)
    ]
    return [
        {
            "name": name,
            "student": student,
            "training": number,
            "stage": "student" if name == "student" else f"student {name}",
            "method": method,
        }
        for name, student, number, method in names
    ]


def _trajectories(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the trajectories that a stage's weights were learned from; None: from none."""
    return manifest.get("inputs", {}).get("weights", {}).get("trajectories")


def _cost(manifest: dict[str, Any], log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a training took: seconds of its loop, network evaluations an image and in all.

    Trajectories of the teacher, where the student learned from them, are a stage of their own, whose evaluations count
    in full for each training. average: the half-life, as the log names it, of the average that was saved.
    """
    cost, trajectories = manifest.get("cost") or {}, 0
    if (made := _trajectories(manifest)) is not None:
        guided = 2 if "teacher.guidance" in manifest["inputs"]["weights"] else 1
        trajectories = made["number"] * made["steps"] * guided
    each = cost.get("forward_equivalents")
    measured = [key.removeprefix("kid_") for record in log for key in record if key.startswith("kid_")]
    return {
        "kimg": log[-1]["kimg"] if log else 0.0,
        "seconds": (log[-1]["seconds"] if log else 0.0) + _earlier_seconds(log),
        "cost": cost,
        "trajectories": trajectories,
        "thousand_evaluations": log[-1]["kimg"] * each + trajectories / 1000 if log and each else None,
        **{key: manifest[key] for key in ("conversion_rmse", "regression") if key in manifest},
        "average": manifest.get("quality", {}).get("chosen", next(iter(measured), None)),
    }


def _read_grids(run_dir: Path, samplers: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    names = {sampler["name"]: f"eval/grids/{slug(sampler['name'])}.png" for sampler in samplers}
    there = [each["name"] for each in samplers if each["quality"] or (run_dir / names[each["name"]]).is_file()]
    return {name: _file(run_dir, names[name]).read_bytes() for name in there}


def _file(run_dir: Path, name: str) -> Path:
    """A file of a run, of a stage or of its log."""
    if not (run_dir / name).is_file():
        stage = name.removeprefix("logs/").removesuffix(".jsonl").partition("/")[0]
        command = COMMAND_OF_STAGE.get(stage, "run")
        remedy = f"no such file; `fewstep {command}` with this run's configuration makes it"
        raise UserError(run_dir / name, None, remedy)
    return run_dir / name


def _read_log(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    path = _file(run_dir, f"logs/{stage}.jsonl")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(path, None, f"is not JSON lines ({error})") from None


def _earlier_seconds(log: Sequence[dict[str, Any]]) -> float:
    """Training time before the last interruption: a record's clock starts anew with each call, a manifest's too."""
    return sum(before["seconds"] for before, after in pairwise(log) if after["seconds"] < before["seconds"])


def _check_protocol(run_dir: Path, protocol: dict[str, Any], sampler: dict[str, Any]) -> None:
    """Refuse a result measured under another protocol than the benchmark's, naming a field that differs."""
    quality = sampler["quality"]
    if quality is None or quality["protocol_hash"] == protocol["hash"]:
        return
    ours = flatten({"protocol": protocol, "protocol_hash": protocol["hash"]})
    theirs = flatten(quality)
    field = next(key for key in ours if key != "protocol.hash" and theirs.get(key, ours[key]) != ours[key])
    remedy = "in eval/benchmark.json, so the results cannot stand in one table; measure again with `fewstep benchmark`"
    where = f"{run_dir}/eval/samplers/{slug(sampler['name'])}.json: {field}"
    raise UserError(where, theirs.get(field), f"differs from {ours[field]!r} {remedy}")
