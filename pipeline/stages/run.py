"""A run: data, teacher, student, evaluation and report, each made when it is missing or stale and not otherwise."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from fewstep.errors import UserError
from fewstep.eval.features.extractors import check_extractor, load_extractor
from fewstep.eval.speed.environment import environment
from fewstep.files import remove, sha256_file, sha256_json, sweep, write_bytes, write_json
from fewstep.pipeline.cli.arguments import config_yaml
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.config.schema import Config
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.stages.lock import run_lock
from fewstep.pipeline.stages.manifest import MANIFEST, is_fresh, make_stage, stage_hash, verify_outputs
from fewstep.pipeline.stages.student import make_student
from fewstep.pipeline.stages.teacher import make_teacher
from fewstep.pipeline.training.checkpoint import latest_checkpoint
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say

STAGES = ("teacher", "student", "evaluate", "report")


def run(config: Config | str | Path, until: str = "report") -> Path:
    """Do what is missing or stale of a run, up to the stage `until` (one of STAGES); returns the run's folder.

    `config` is a Config, or what `fewstep run` takes: the name of a preset or the path of a YAML file.
    Raises UserError for whatever is wrong with the configuration, the data or an earlier run in the folder.
    """
    if until not in STAGES:
        raise UserError("until", until, f"must be one of {', '.join(STAGES)}")
    if not isinstance(config, Config):
        config = load_config(config)
    folder, clock = config.folder, time.monotonic()
    with run_lock(folder), raising_signals():
        sweep(folder)
        job = Run(config)
        job.check(until)
        for name in STAGES[: STAGES.index(until) + 1]:
            getattr(job, name)()
        say(f"finished in {time.monotonic() - clock:.0f} s")
        say(str(folder / "report" / "index.html") if until == "report" else str(folder))
    return folder


def report(folder: Path) -> Path:
    """Write a measured run's report again, from its files alone; returns the path of index.html."""
    from fewstep.eval.report.page import write_report

    with run_lock(Path(folder)):
        path = write_report(Path(folder), commands(Path(folder)))
    say(str(path))
    return path


def commands(folder: Path) -> list[str]:
    """The command lines that make a run again."""
    return [f"fewstep run {folder / 'config.yaml'}"]


class Run(RunContext):
    """A run's stages, as methods."""

    def check(self, until: str) -> None:
        """What can be known to be wrong before any work starts."""
        config = self.config
        if until == "teacher":
            return
        if not (self.folder / "eval" / MANIFEST).exists():
            shape = tuple(self.data_facts["shape"])
            check_extractor(config.eval.extractor, config.eval.extractor_weights, shape)
            if config.eval.reference is not None:
                from fewstep.eval.quality.reference_files import read_reference

                extractor = load_extractor(config.eval.extractor, config.eval.extractor_weights, self.device)
                read_reference(config.eval.reference.expanduser(), extractor)

    def write_config(self) -> None:
        """The resolved configuration, as YAML for people and as JSON, and the provenance of the data."""
        write_json(self.folder / "data.json", self.data_facts)
        write_bytes(self.folder / "config.yaml", config_yaml(self.config).encode())
        write_json(self.folder / "config.json", self.config.to_dict())

    def teacher(self) -> None:
        """Train a teacher, or load one, into teacher/."""
        section = self.config.to_dict()["teacher"]
        own = section["source"] == "train"
        inputs = {"teacher": section, "seed": self.config.seed, "data": self.data_facts["sha256"]}
        if self.config.data.horizontal_flip:
            inputs["horizontal_flip"] = True
        inputs = inputs if own else {"teacher": {"source": section["source"]}}
        self._stage("teacher", inputs, lambda stage: make_teacher(self, stage, sha256_json(inputs)))

    def student(self) -> None:
        """Distil the teacher into student/."""
        inputs = {
            "student": self.config.to_dict()["student"],
            "seed": self.config.seed,
            "data": self.data_facts["sha256"],
            "horizontal_flip": self.config.data.horizontal_flip,
            "choice_split": self.config.data.choice_split,
            "extractor": self.config.eval.extractor,
            "teacher": stage_hash(self.folder / "teacher"),
        }
        self._stage("student", inputs, lambda stage: make_student(self, stage, sha256_json(inputs)))

    def evaluate(self) -> None:
        """Measure teacher and student into eval/."""
        section = self.config.to_dict()["eval"]
        del section["inception_weights"], section["dinov2_weights"]  # where they are, not what they are
        if (file := self.config.eval.reference) is not None:
            section["reference"] = sha256_file(file.expanduser())
        inputs = {
            "eval": section,
            "data": self.data_facts["sha256"],
            "reference_split": self.config.data.reference_split,
            "choice_split": self.config.data.choice_split,
            "teacher": stage_hash(self.folder / "teacher"),
            "student": stage_hash(self.folder / "student"),
        }

        def build(stage: Path) -> dict[str, Any]:
            from fewstep.pipeline.stages.evaluate import evaluate

            return evaluate(self, stage, sha256_json(inputs))

        self._stage("eval", inputs, build)

    def report(self) -> None:
        """Write report/ from the files of the other stages."""
        from fewstep.eval.report.page import write_report

        self.write_config()
        write_report(self.folder, commands(self.folder))

    def _stage(self, name: str, inputs: dict[str, Any], build: Callable[[Path], dict[str, Any] | None]) -> None:
        folder, checkpoints = self.folder / name, self.folder / "checkpoints" / name
        if is_fresh(folder, inputs):
            verify_outputs(folder)
            say(f"{name}: up to date")
        else:
            latest_checkpoint(checkpoints, sha256_json(inputs), lambda text: None)  # refuse before writing anything
            self.write_config()
            facts = {
                "config_hash": sha256_json(self.config.to_dict()),
                "seed": self.config.seed,
                "environment": environment(self.device),
                "command": " ".join(["fewstep", *sys.argv[1:]]),
            }
            set_seed(self.config.seed)
            make_stage(folder, inputs, facts, build)
        with suppress(OSError):
            remove(checkpoints)
