"""A run: data, teacher, students, evaluation and report, each made when it is missing or stale and not otherwise."""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from fewstep.errors import UserError
from fewstep.eval.speed.environment import environment
from fewstep.files import remove, sha256_file, sha256_json, sweep, write_bytes, write_json
from fewstep.pipeline.config.reading import config_yaml, kept_config, load_config, resolved
from fewstep.pipeline.config.schema import Config, StudentConfig, Training
from fewstep.pipeline.config.teacher import LoadedTeacher
from fewstep.pipeline.stages.checks import MEASURING, check_before
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.stages.lock import run_lock
from fewstep.pipeline.stages.manifest import (
    MANIFEST,
    changed_inputs,
    changes,
    make_stage,
    model_hash,
    read_manifest,
    verify_outputs,
)
from fewstep.pipeline.stages.student import make_student
from fewstep.pipeline.stages.teacher import loaded_inputs, make_teacher
from fewstep.pipeline.stages.trajectories import make_trajectories
from fewstep.pipeline.training import processes
from fewstep.pipeline.training.checkpoint import latest_checkpoint
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.teachers.load import read_teacher
from fewstep.teachers.solvers import levels

Build = Callable[[Path | None, dict[str, Any] | None], dict[str, Any] | None]
"""What fills a stage's folder; without one it works beside the process that does."""
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
    job = Run(config)
    lock = run_lock(folder) if processes.leads() else nullcontext()
    with raising_signals(), processes.together([config.to_dict(), until], folder), lock:
        processes.led(lambda: (sweep(folder), check_before(job, until)))
        job.begin(until)
        for name in STAGES[: STAGES.index(until) + 1]:
            getattr(job, name)()
        say(f"finished in {time.monotonic() - clock:.0f} s")
        say(str(folder / "report" / "index.html") if until == "report" else str(folder))
    return folder


def report(folder: Path) -> Path:
    """Write a measured run's report again, from its files alone; returns the path of index.html.

    UserError: the results are not those of the models and the configuration in the folder.
    """
    from fewstep.eval.report.page import write_report

    folder = Path(folder)
    is_run = (folder / "config.json").exists()
    with run_lock(folder) if is_run else nullcontext():  # what is no run is left as it is
        if is_run:  # what is missing is named below
            job = Run(kept_config(folder), folder)
            if stale := job.stale_results():
                remedy = f"was measured of other models or settings ({stale}); {commands(folder)[0]} measures again"
                raise UserError(folder / "eval", None, remedy)
        path = write_report(folder, commands(folder))
    say(str(path))
    return path


def commands(folder: Path) -> list[str]:
    """The command lines that make a run again."""
    return [f"fewstep run {folder / 'config.yaml'}"]


class Run(RunContext):
    """A run's stages, as methods.

    A stage's inputs are the content of what it reads: the settings that change numbers, pixels, weights.
    """

    def write_config(self) -> None:
        """The resolved configuration, as YAML for people and as JSON, and the provenance of the data."""
        write_json(self.folder / "data.json", self.data_facts)
        write_bytes(self.folder / "config.yaml", config_yaml(self.config).encode())
        write_json(self.folder / "config.json", self.config.to_dict())

    def _training_inputs(self) -> dict[str, Any]:
        flip = self.config.data.horizontal_flip
        inputs = {"seed": self.config.seed, "data": self.data_facts["sha256"], "data.horizontal_flip": flip}
        if self.config.data.storage == "stream":
            inputs |= {"data.shuffle_window": self.config.data.window}
        return inputs

    def teacher(self) -> None:
        """Train a teacher, or load one, into teacher/."""
        if isinstance(self.config.teacher, LoadedTeacher):
            inputs, redone = loaded_inputs(self.config.teacher), "loaded again"
        else:
            numbers = self.config.teacher.numbers()
            teacher = self.config.teacher
            unread = {"guidance"}  # of its samplers and students
            unread |= set() if teacher.class_conditional else {"class_conditional", "label_dropout"}
            unread |= set() if teacher.has_schedule else {"schedule", "num_train_timesteps"}
            numbers = {key: value for key, value in numbers.items() if key not in unread}
            inputs = {"teacher": numbers} | self._training_inputs()
            if self.config.teacher.class_conditional:
                inputs |= {"labels": self.labels_sha256()}
            redone = "trained again from the start"
        own = sha256_json(inputs)
        self._stage("teacher", "teacher", inputs, lambda stage, _: make_teacher(self, stage, own), own, redone)
        if self.config.is_open:
            space = read_teacher(self.folder / "teacher")[0].space
            self.config = resolved(self.config, len(levels(space)), space.sigma_max)
        if self.until in MEASURING and isinstance(self.config.teacher, LoadedTeacher):
            self.config.check_steps(len(levels(read_teacher(self.folder / "teacher")[0].space)))

    def student(self) -> None:
        """Distil the teacher into students/NAME/, for each training of each student."""
        for name, training in self.config.trainings.items():
            config, key, numbers = training.config, training.key, training.config.numbers()
            choices = {"data.choice_split": self.config.data.choice_split, "seed": self.config.seed}
            steps = self._steps(name, training)
            del numbers["steps"]
            search = {f"{key}.search_images": numbers.pop("search_images"), f"{key}.steps": steps} | choices
            weights = {key: numbers} | self._teacher_hash() | self._training_inputs()
            weights |= {"training": training.number} if training.number > 1 else {}
            weights |= self._labels()
            if config.method.reads_trajectories:
                weights |= {"trajectories": self.config.trajectories.numbers()}
            search |= self._extractor()
            if len(config.train.halflives) > 1:  # what noise levels are chosen by chooses the average too
                weights, search = weights | search, {}
            elif not steps and not self.config.chooses(training):
                search = {}
            inputs = {"weights": weights, "search": search}
            self._stage(
                f"students/{name}",
                self.title(name),
                inputs,
                lambda stage, kept, training=training, inputs=inputs: make_student(self, training, stage, inputs, kept),
                sha256_json(weights),
                "distilled again from the start",
                ("search.", "its noise levels searched again"),
                partial(self._trajectories, config) if config.method.reads_trajectories else None,
            )

    def _steps(self, name: str, training: Training) -> list[int]:
        """Return the numbers of steps to choose noise levels for: those asked for, or more if these were chosen."""
        if training.config.method.student != "consistency":
            return []
        asked, kept = list(self.config.steps_of(training.student)), list[int]()
        if (self.folder / "students" / name / MANIFEST).exists():
            inputs = read_manifest(self.folder / "students" / name)["inputs"]
            kept = (inputs.get("weights", {}) | inputs.get("search", {})).get(f"{training.key}.steps", [])
        return kept if {*asked} <= {*kept} else asked

    def _labels(self) -> dict[str, Any]:
        """The labels of the data, and their names, where the teacher has classes."""
        if not self.conditional:
            return {}
        return {"labels": self.labels_sha256(), "class_names": sha256_json(self.data.class_names)}

    def _teacher_hash(self) -> dict[str, Any]:
        """The teacher as students have it: its model, and the guidance where there is some."""
        guidance = self.config.teacher.guidance
        guided = {} if guidance == 1 else {"teacher.guidance": guidance}
        return {"teacher": model_hash(self.folder / "teacher")} | guided

    def _trajectories(self, config: StudentConfig) -> None:
        """Make trajectories/ of the teacher, which students that are made already do without."""
        ends = config.noise_range
        inputs = {"trajectories": self.config.trajectories.numbers(), "sigma_min": ends[0], "sigma_max": ends[1]}
        inputs |= {"seed": self.config.seed} | self._teacher_hash()
        own = sha256_json(inputs)
        build: Build = lambda stage, _: make_trajectories(self, stage, own, ends)  # noqa: E731
        self._stage("trajectories", "trajectories", inputs, build, own, "made again")

    def _extractor(self) -> dict[str, Any]:
        """The extractor, and which weights of it where a file is given."""
        weights = self.config.eval.weights
        hashed = {} if weights is None else {"eval.extractor_weights": sha256_file(weights.expanduser())}
        return {"eval.extractor": self.config.eval.extractor} | hashed

    def _measured(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What all results depend on, and by sampler what its own depend on besides."""
        settings = self.config.eval.numbers()
        del settings["samplers"], settings["extractor"]
        if (file := self.config.eval.reference) is not None:
            settings["reference"] = sha256_file(file.expanduser())
        shared = {"eval": settings} | self._extractor() | {"data": self.data_facts["sha256"]}
        keys = ("reference_split", "horizontal_flip", "choice_split")
        shared |= {f"data.{key}": getattr(self.config.data, key) for key in keys}
        shared |= self._labels()
        names = self.config.samplers
        folders = {name.subject: "teacher" if name.kind == "teacher" else f"students/{name.subject}" for name in names}
        hashes = {subject: model_hash(self.folder / folder) for subject, folder in folders.items()}
        if (guidance := self.config.teacher.guidance) != 1 and "teacher" in hashes:
            hashes["teacher"] += f", guidance {guidance}"
        return shared, {str(name): hashes[name.subject] for name in names}

    def evaluate(self) -> None:
        """Measure teacher and students into eval/."""
        shared, models = self._measured()
        others = shared | {"eval": {key: value for key, value in shared["eval"].items() if key != "ddpm_seed_blocks"}}
        identities = {
            name: sha256_json([shared if "@ddpm:" in name else others, name, model]) for name, model in models.items()
        }

        def build(stage: Path | None, _: dict[str, Any] | None) -> dict[str, Any] | None:
            from fewstep.pipeline.stages.evaluate import evaluate

            return evaluate(self, stage, identities)

        inputs = shared | {"samplers": models}
        redone = "measured again where a result depends on it"
        self._stage("eval", "eval", inputs, build, sha256_json(inputs), redone)

    def stale_results(self) -> str:
        """How eval/ differs from what configuration and models in the folder would give.

        "" where it does not, or where that cannot be told: a stage is missing, or a file that was measured with.
        """
        stages = ["teacher", *(f"students/{name}" for name in self.config.trainings), "eval"]
        if not all((self.folder / stage / MANIFEST).exists() for stage in stages):
            return ""
        try:
            shared, models = self._measured()
        except FileNotFoundError:
            return ""
        return ", ".join(changes(read_manifest(self.folder / "eval")["inputs"], shared | {"samplers": models}).values())

    def report(self) -> None:
        """Write report/ from the files of the other stages."""
        from fewstep.eval.report.page import write_report

        def write() -> None:
            self.write_config()
            write_report(self.folder, commands(self.folder))

        processes.led(write)

    def _stage(
        self,
        name: str,
        title: str,
        inputs: dict[str, Any],
        build: Build,
        identity: str,
        redone: str,
        partly: tuple[str, str] = ("no part", ""),
        first: Callable[[], None] | None = None,
    ) -> None:
        """Make the stage in the folder `name` unless it is there, made from these inputs.

        `redone` says what is done where they have changed. `partly` does so where only inputs that begin with its
        first entry have: `build` then gets the manifest of what is there, otherwise None, after `first` has made
        what it reads then. `identity`: of the checkpoints. Of several processes one decides and writes; in the others
        `build` gets no folder.
        """
        folder, checkpoints = self.folder / name, self.folder / "checkpoints" / name
        due, kept = processes.led(lambda: self._due(name, title, inputs, identity, redone, partly))
        if due:
            if first is not None and kept is None:
                first()
            set_seed(self.config.seed)

            def make() -> None:
                self.write_config()
                facts = {
                    "config_hash": sha256_json(self.config.to_dict()),
                    "seed": self.config.seed,
                    "environment": environment(self.device),
                    "command": " ".join(["fewstep", *sys.argv[1:]]),
                }
                make_stage(folder, title, inputs, facts, lambda stage: build(stage, kept))

            make() if processes.leads() else build(None, kept)
            processes.meet()  # the others wait until its files are there
        if processes.leads():
            with suppress(OSError):
                remove(checkpoints)
                (self.folder / "checkpoints" / "students").rmdir()  # when it is empty

    def _due(
        self, name: str, title: str, inputs: dict[str, Any], identity: str, redone: str, partly: tuple[str, str]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Whether a stage is to be made, and the manifest of what is kept of it: see `_stage`."""
        folder, checkpoints = self.folder / name, self.folder / "checkpoints" / name
        changed, kept = changed_inputs(folder, title, inputs), None
        if changed == {}:
            verify_outputs(folder)
            say(f"{title}: up to date")
            return False, None
        if changed:
            manifest = read_manifest(folder)
            if all(key.startswith(partly[0]) for key in changed):
                verify_outputs(folder)
                kept, redone = manifest, partly[1]
            shown = [*list(changed.values())[:3], *[f"{len(changed) - 3} more"] * (len(changed) > 3)]
            say(f"{title}: {', '.join(shown)}: {redone} (took {manifest.get('seconds', 0):.0f} s)")
        latest_checkpoint(checkpoints, identity, lambda text: None)  # refuse before writing anything
        return True, kept
