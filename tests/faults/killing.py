"""Kill -9 at random moments of a tiny run, and what must hold after each and at the end."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from faults.forks import Child, Forks
from fewstep.errors import UserError
from fewstep.files import read_json, sha256_file
from fewstep.pipeline.stages.manifest import MANIFEST, verify_outputs
from fewstep.pipeline.training.checkpoint import list_checkpoints, verify_checkpoint

CHANGES = {
    "teacher__train__kimg": 0.768,
    "teacher__train__checkpoint_kimg": 0.128,
    "student__train__kimg": 0.384,
    "student__train__checkpoint_kimg": 0.096,
}
"""Of the tiny run: 24 steps of the teacher, saved every 4, and 12 of the student, saved every 3."""
IMAGES = 64
STAGES = {"teacher": "steps", "student": "steps", "eval": "seed blocks", "sample": "calls", "report": "calls"}
"""What is killed, and what its lost work is counted in."""
COMMANDS = {"teacher": "train-teacher", "student": "distill", "eval": "benchmark"}
PLACES = {"student": "students/student"}
"""The folder of a stage, where its name is another: in the run, under checkpoints/ and, with .jsonl, under logs/."""
CLOCKS = ("seconds", "kimg_per_s")


@dataclass
class Run:
    """A run in OUT/digits with its own cache of features and a list of the checkpoints that it ever saved."""

    forks: Forks
    out: Path
    tiny: Callable[..., list[str]]
    """The arguments of a tiny run."""

    @property
    def folder(self) -> Path:
        return self.out / "digits"

    @property
    def samples(self) -> Path:
        return self.out / "samples"

    def argv(self, stage: str) -> list[str]:
        """The command that makes a stage."""
        if stage == "sample":
            return ["sample", str(self.folder), "--num", str(IMAGES), "--seed", "3", "-o", str(self.samples)]
        if stage == "report":
            return ["report", str(self.folder)]
        return [COMMANDS[stage], *self.tiny(self.out, **CHANGES)]

    def start(self, stage: str, fault: str | None = None) -> Child:
        """Begin to make a stage in a new process, under a fault of `faults.tasks`."""
        environment = {"FEWSTEP_CACHE": str(self.out / "cache")}
        job = {"argv": self.argv(stage), "saved": str(self.out / "saved.jsonl"), "fault": fault}
        return self.forks.start("command", environment, **job)

    def make(self, stage: str, fault: str | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of making a stage."""
        child = self.start(stage, fault)
        return child.wait(), child.out.read_text(), child.err.read_text()

    def before(self, stage: str, out: Path) -> "Run":
        """A copy of this finished run as it was before a stage was made."""
        stages = list(STAGES)
        later = stages[stages.index(stage) :]
        names = [*later, *(f"{name}.jsonl" for name in later)]
        shutil.copytree(self.folder, out / "digits", ignore=shutil.ignore_patterns(*names, ".lock"))
        return Run(self.forks, out, self.tiny)

    def records(self, title: str) -> list[dict[str, Any]]:
        """The log of a training, without what the clock gives."""
        path = self.folder / "logs" / f"{PLACES.get(title, title)}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]

    def saved(self) -> dict[tuple[str, int], Any]:
        """By stage and step: objective, average and optimizer of each checkpoint, as sha256, and unlogged losses."""
        path, found = self.out / "saved.jsonl", {}
        for line in path.read_text().splitlines() if path.exists() else []:
            value = json.loads(line)
            kept = ("files", "losses", "levels", "config_hash")
            found[value["stage"], value["step"]] = {key: value[key] for key in kept}
        return found

    def results(self, stage: str) -> dict[str, Any]:
        """All that a stage must give again to the bit, by name: not what a clock gave."""
        if stage == "sample":
            return {path.name: sha256_file(path) for path in self.samples.iterdir()}
        if stage == "report":
            names = ("index.html", "results.md", "results.json")
            return {name: (self.folder / "report" / name).stat().st_size > 0 for name in names}
        outputs = read_json(self.folder / PLACES.get(stage, stage) / MANIFEST)["outputs"]
        found: dict[str, Any] = {name: each["sha256"] for name, each in outputs.items()}
        if stage != "eval":
            return found | {f"log line {index}": record for index, record in enumerate(self.records(stage))}
        for name in [name for name in outputs if name.startswith("samplers/")]:
            found[name] = read_json(self.folder / "eval" / name)["quality"]
        benchmark = read_json(self.folder / "eval" / "benchmark.json")
        kept = ("protocol", "reference", "floor", "copies", "sampler_order")
        return found | {"benchmark.json": {key: benchmark[key] for key in kept}}

    def leftovers(self) -> list[str]:
        """What a kill may leave and the end of a run must not."""
        hidden = [path for path in self.out.rglob(".*") if path.name != ".lock"]
        return [str(path.relative_to(self.out)) for path in [*hidden, *self.folder.glob("checkpoints/*")]]


def finished_run(run: Run) -> dict[str, float]:
    """Make a run without interruption; returns the seconds of the processor that each stage takes."""
    seconds = {}
    for stage in STAGES:
        child = run.start(stage)
        assert child.wait() == 0, child.err.read_text()
        seconds[stage] = child.cpu_seconds
    return seconds


@dataclass
class Outcome:
    """Of kills in one stage: how many, what each lost, and what was wrong after them."""

    injected: int = 0
    survived: int = 0
    lost: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def kill_at_random(whole: Run, stage: str, kills: int, cpu_seconds: float, random: Random, folder: Path) -> Outcome:
    """Make `stage` again and again, killed -9 `kills` times in all, each at a random moment of the time it takes."""
    outcome = Outcome()
    while outcome.injected < kills:
        run = whole.before(stage, folder / str(outcome.injected))
        killed, wrong = 0, []
        while not (stage == "sample" and run.samples.exists()):
            before = _progress(run, stage)
            child = run.start(stage)
            last = outcome.injected + killed == kills
            code = child.wait() if last else child.kill_after(random.uniform(0, cpu_seconds))
            if code != -9:
                if code != 0:
                    wrong.append(f"exit code {code}: {child.err.read_text()}")
                break
            killed += 1
            outcome.lost.append(_lost(run, stage, before, wrong))
        if not wrong:
            wrong = _differences(run, whole, stage)
        outcome.injected += killed
        outcome.survived += 0 if wrong else killed
        outcome.wrong += wrong
        shutil.rmtree(run.out)
    return outcome


def _progress(run: Run, stage: str) -> dict[str, Any]:
    """How far a stage is: its newest checkpoint or its measured blocks, and which log and scratch files there are."""
    log, work = (
        run.folder / "logs" / f"{PLACES.get(stage, stage)}.jsonl",
        run.folder / "checkpoints" / PLACES.get(stage, stage),
    )
    steps = [int(path.name.removeprefix("step-")) for path in list_checkpoints(work)]
    blocks = Counter[str]()
    for path in work.glob("samplers/[!.]*.json"):
        blocks[path.name] = len((read_json(path)["quality"] or {"seeds": []})["seeds"])
    return {
        "checkpoint": max(steps, default=0),
        "blocks": sum(blocks.values()),
        "log": log.stat().st_ino if log.exists() else None,
        "scratch": {path.name for path in work.glob(".scratch-*")},
        "done": run.samples.exists()
        if stage == "sample"
        else (run.folder / PLACES.get(stage, stage) / MANIFEST).exists(),
    }


def _lost(run: Run, stage: str, before: dict[str, Any], wrong: list[str]) -> float:
    """Work that a kill threw away; what it must not have done is added to `wrong`."""
    now = _progress(run, stage)
    if (run.folder / PLACES.get(stage, stage) / MANIFEST).exists():
        verify_outputs(run.folder / PLACES.get(stage, stage))
    if stage == "report" or now["done"]:
        return 0.0 if now["done"] else 1.0
    if stage == "sample":
        return 1.0
    if stage == "eval":
        if now["blocks"] < before["blocks"]:
            wrong.append(f"{before['blocks'] - now['blocks']} measured seed blocks are gone")
        return float(bool(now["scratch"] - before["scratch"]))
    if now["checkpoint"] < before["checkpoint"]:
        wrong.append(f"the checkpoint of step {before['checkpoint']} is gone")
    if now["checkpoint"]:
        try:
            verify_checkpoint(run.folder / "checkpoints" / PLACES.get(stage, stage) / f"step-{now['checkpoint']:09d}")
        except UserError as error:
            wrong.append(f"the newest checkpoint is not whole: {error}")
    if now["log"] == before["log"]:  # killed before its first step
        return 0.0
    return float(max((record["step"] for record in run.records(stage)), default=0) - now["checkpoint"])


def _differences(run: Run, whole: Run, stage: str) -> list[str]:
    """Where a run that was killed differs from the one that was not."""
    wrong = [f"left behind: {name}" for name in run.leftovers()]
    mine, theirs = run.results(stage), whole.results(stage)
    wrong += [f"{name} differs" for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
    saved, uninterrupted = run.saved(), whole.saved()
    wrong += [f"checkpoint {place} differs" for place, value in saved.items() if value != uninterrupted[place]]
    return wrong
