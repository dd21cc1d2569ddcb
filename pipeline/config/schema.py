"""The configuration: frozen sections, constraints and documentation on their fields, which `fewstep run --help` shows.

A check across settings raises a UserError with the key inside its section; "{here}" in a remedy becomes the section's
dotted name. A field's title says what its value must be where its type does not. Training lengths are in kimg
(thousands of images). Nothing here imports torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fewstep.errors import UserError
from fewstep.eval.seeds import BLOCK_IMAGES
from fewstep.pipeline.config.constraints import Positive, Text, distinct
from fewstep.pipeline.config.evaluation import EvalConfig
from fewstep.pipeline.config.teacher import Teacher, TrainedTeacher
from fewstep.pipeline.config.training import TrainConfig
from fewstep.pipeline.sampling.grammar import ALL, SamplerName, parse_own
from fewstep.settings import Section, no_number
from fewstep.students.methods import Method
from fewstep.students.methods.adversarial import Adversarial
from fewstep.students.methods.dmd import DMD
from fewstep.students.methods.lcm import LCM
from fewstep.students.methods.matching import Matching
from fewstep.students.methods.tcm import TCM

DIGITS_SHAPE = (1, 8, 8)
SIGMA_MAX = 80.0


class DataConfig(Section):
    """Which images, and how they become one uint8 tensor."""

    source: str = Field(
        pattern=r"^(digits|(hub|parquet|imagefolder):(?s:.)*\S(?s:.)*)$",
        title="digits, hub:ID, parquet:PATH or imagefolder:PATH",
        description="digits (shipped), hub:ID, parquet:PATH (file or folder) or imagefolder:PATH",
    )
    revision: Text | None = Field(default=None, description="branch, tag or commit of a hub:ID; null: its newest")
    config_name: Text | None = Field(
        default=None, description="configuration of a hub:ID that has several; null: its default"
    )
    split: Text = Field(default="train", description="split the networks learn from")
    reference_split: Text | None = Field(default=None, description="split measured against; null: the training images")
    choice_split: Text | None = Field(default=None, description="split of the choices; null: some training images")
    image_column: Text | None = Field(default=None, description="column of the images; null: found by its type or name")
    label_column: Text | None = Field(default=None, description="column of the labels; null: found by its type or name")
    image_size: int | None = Field(
        default=None, ge=1, le=4096, description="side to resize and crop to; null: as they are"
    )
    channels: Literal[1, 3] | None = Field(default=None, description="1 (grey) or 3 (RGB): convert; null: as they are")
    horizontal_flip: bool = Field(default=False, description="mirror training images at random")
    storage: Literal["memory", "disk", "stream"] = Field(
        default="memory",
        description="where the training images lie: in memory, in an array on the disk that is made once, or where "
        "they are, and are read through in windows",
    )
    shuffle_window: int | None = Field(
        default=None, ge=2, description="rows of a stream that are shuffled together; null: 10000"
    )
    workers: int | None = no_number(
        None, ge=0, le=64, description="processes that decode a stream, or read the disk, ahead; null: 2, of the disk 0"
    )

    @property
    def window(self) -> int:
        """Rows of a stream that are shuffled together."""
        return 10_000 if self.shuffle_window is None else self.shuffle_window

    @property
    def reading_processes(self) -> int:
        """Processes that read and decode ahead, beside each that trains."""
        return (2 if self.storage == "stream" else 0) if self.workers is None else self.workers

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.choice_split == (self.reference_split or self.split):
            remedy = "is what quality is measured against: choose on another split, or leave it out"
            raise UserError("choice_split", self.choice_split, remedy)
        for key in ("revision", "config_name"):
            if not self.source.startswith("hub:") and (value := getattr(self, key)) is not None:
                raise UserError(key, value, "is of a data set on the hub (hub:ID): leave it out")
        if self.storage != "stream" and self.shuffle_window is not None:
            remedy = f"is of {{here}}storage stream, and {self.storage} shuffles all images together: leave it out"
            raise UserError("shuffle_window", self.shuffle_window, remedy)
        if self.storage == "memory" and self.workers is not None:
            raise UserError("workers", self.workers, "has no effect with {here}storage memory: leave it out")
        if self.storage == "stream" and self.choice_split == self.split:
            raise UserError("choice_split", self.choice_split, "is the split that is streamed: leave it out")
        if self.source == "digits":
            if self.storage == "stream":
                raise UserError("storage", "stream", "the digits are made in memory: give memory or disk")
            if self.split != "train":
                raise UserError("split", self.split, "the digits have one split, train")
            for key in ("reference_split", "choice_split", "image_column", "label_column"):
                if (value := getattr(self, key)) is not None:
                    raise UserError(key, value, "has no effect on digits: leave it out")
        return self


class TrajectoryConfig(Section):
    """Trajectories of the teacher, made once for the students whose method learns from them (cmt)."""

    number: int = Field(default=12_000, ge=1, description="trajectories")
    steps: int = Field(
        default=16, ge=2, le=1000, description="teacher evaluations of each, DPM-Solver++(2M) in ln sigma"
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="arithmetic of the teacher; points are fp32")
    dtype: Literal["float16", "float32"] = Field(default="float32", description="how their points are kept on the disk")


class StudentConfig(Section):
    """A student and how it is distilled."""

    method: Method
    matching: Matching | None = Field(default=None, description="distribution matching at the end; null: none")
    adversarial: Adversarial | None = Field(default=None, description="a discriminator at the end; null: none")
    training_seeds: int = no_number(
        1, ge=1, le=99, description="how often it is trained, each time from other randomness and in other order"
    )
    sigma_min: Positive = Field(default=0.002, description="smallest noise level of a consistency model")
    sigma_max: Positive | None = Field(
        default=None,
        description=f"largest noise level of a consistency model; null: {SIGMA_MAX:g}, or the teacher's largest if it "
        "is less",
    )
    steps: Annotated[tuple[Literal[1, 2, 4, 8], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="numbers of steps to choose noise levels for (one step needs no choice); null: those in "
        "eval.samplers",
    )
    refit_steps: int = Field(default=4000, ge=0, description="optimizer steps that refit the time embedding")
    regression_kimg: float | None = Field(
        None,
        ge=0,
        description="length of regression onto a teacher that cannot be folded; null: 20, and none for cmt, which "
        "learns the teacher's map from its trajectories",
    )
    search_images: int = Field(
        ge=32, lt=BLOCK_IMAGES, description="images per list of noise levels in the search for them"
    )
    quality_kimg: Positive | None = no_number(
        None, description="kimg between measurements of the averages; null: at the end, where there are several"
    )
    train: TrainConfig

    @property
    def noise_range(self) -> tuple[float, float]:
        """The smallest and the largest noise level of a consistency model."""
        return self.sigma_min, SIGMA_MAX if self.sigma_max is None else self.sigma_max

    @model_validator(mode="after")
    def _check(self) -> "StudentConfig":
        low, high = self.noise_range
        if low >= high:
            raise UserError("sigma_min", low, f"must be less than {{here}}sigma_max = {high}")
        if isinstance(self.method, TCM) and not low < self.method.boundary < high / 2:
            remedy = f"must lie between {{here}}sigma_min = {low} and half of "  # which two steps can reach
            remedy += f"{{here}}sigma_max = {high}"
            raise UserError("method.boundary", self.method.boundary, remedy)
        if self.matching is not None and (self.method.student != "consistency" or isinstance(self.method, DMD)):
            why = "matches by itself" if isinstance(self.method, DMD) else "trains no consistency model"
            raise UserError("matching", None, f"{{here}}method {self.method.name} {why}: leave {{here}}matching out")
        return self


@dataclass(frozen=True)
class Training:
    """One training of a student. `name` names its folder; `number` counts from 1, whose name is the student's own."""

    name: str
    student: str
    number: int
    config: StudentConfig

    @property
    def key(self) -> str:
        """The dotted key of the student's section."""
        return "student" if self.student == "student" else f"students.{self.student}"


class Config(Section):
    """A whole run. Its folder is out/name."""

    name: str = no_number(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        title="letters, digits, '.', '_' and '-', as it names a folder",
        description="name of the run, and of its folder",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="seed of everything random in training")
    device: Literal["auto", "cpu"] = no_number("auto", description="auto (the accelerator there is) or cpu")
    out: Path = no_number(Path("runs"), description="folder that holds the runs")
    data: DataConfig
    teacher: Teacher
    trajectories: TrajectoryConfig = TrajectoryConfig()
    students: dict[str, StudentConfig]
    eval: EvalConfig

    @field_validator("students")
    @classmethod
    def _names(cls, students: dict[str, StudentConfig]) -> dict[str, StudentConfig]:
        for name in students:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name) or name == "teacher":
                remedy = "a student's name must be 1 to 40 of a-z, 0-9 and '-', not begin with '-' and not be teacher"
                raise UserError("", name, remedy)
        return students

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for each in self._all_trainings():
            if each.number > 1 and each.name in self.students:
                remedy = f"is what training {each.number} of {each.student} is called: give another name"
                raise UserError("students", each.name, remedy)
        cmt = [name for name, each in self.students.items() if each.method.reads_trajectories]
        for name in cmt[1:]:
            ends, first = (each.noise_range for each in (self.students[name], self.students[cmt[0]]))
            if ends != first:
                remedy = f"{cmt[0]} has {first[0]:g} and {first[1]:g}, and both learn from the same trajectories"
                raise UserError(f"students.{name}.sigma_min, sigma_max", ends, remedy)
        for name in self.eval.samplers:
            if (subject := parse_own(name).subject) not in ("teacher", "student", *self.students):
                remedy = f"no student is called {subject}: give one of {', '.join(self.students)}, or student for all"
                raise UserError("eval.samplers", name, remedy)
        distinct("eval.samplers", [str(name) for name in self.samplers])
        if isinstance(self.teacher, TrainedTeacher):
            if isinstance(given := self.teacher.train.ema_halflife_kimg, tuple):
                remedy = "must be one number: a teacher has one average"
                raise UserError("teacher.train.ema_halflife_kimg", list(given), remedy)
            for each in self._all_trainings():
                self._check_trained(self.teacher, each)
        for each in self._all_trainings():
            follows = each.config.method.follows_teacher or each.config.matching is not None
            if self.teacher.guidance != 1 and not follows:
                remedy = (
                    f"does not reach a student of {each.key}.method = {each.config.method.name}, which learns of the "
                )
                raise UserError("teacher.guidance", self.teacher.guidance, f"{remedy}data alone: choose another, or 1")
        streamed = self.data.storage == "stream" and self.data.reference_split in (None, self.data.split)
        if streamed and self.eval.reference is None:
            remedy = "must name another split with data.storage stream, to measure against, which is read into memory; "
            raise UserError("data.reference_split", self.data.reference_split, f"{remedy}or set data.storage to disk")
        known = DIGITS_SHAPE if self.data.source == "digits" else (None, None, None)
        size = self.data.image_size or known[1]
        self.check_shape((self.data.channels or known[0], size, size))
        return self

    def _check_trained(self, teacher: TrainedTeacher, training: Training) -> None:
        """UserError for a method that takes no student from a teacher of its kind."""
        method = training.config.method
        called = f"for {training.key}.method = {method.name}"
        if method.student == "ddim" and teacher.prediction not in ("v_prediction", "sample"):
            raise UserError("teacher.prediction", teacher.prediction, f"must be v_prediction or sample {called}")
        if method.student == "ddim" and teacher.class_conditional:
            remedy = f"cannot be true {called}: the stock DDIMPipeline of its students takes no classes"
            raise UserError("teacher.class_conditional", True, remedy)
        if isinstance(method, LCM) and not teacher.has_schedule:
            raise UserError("teacher.prediction", teacher.prediction, f"has no timesteps, which it must {called}")

    def _all_trainings(self) -> list[Training]:
        return [
            Training(name if number == 1 else f"{name}-{number}", name, number, config)
            for name, config in self.students.items()
            for number in range(1, config.training_seeds + 1)
        ]

    @property
    def trainings(self) -> dict[str, Training]:
        """Every training of every student by its name: NAME, then NAME-2, NAME-3 as `training_seeds` has it."""
        return {each.name: each for each in self._all_trainings()}

    @property
    def samplers(self) -> list[SamplerName]:
        """`eval.samplers`, with a sampler of each training of a student, or of all where it is called `student`."""
        names = [parse_own(text) for text in self.eval.samplers]
        trainings = self.trainings.values()
        return [
            SamplerName(subject, name.solver, name.steps)
            for name in names
            for subject in (
                ["teacher"]
                if name.kind == "teacher"
                else [each.name for each in trainings if name.subject in ("student", each.student)]
            )
        ]

    @property
    def is_open(self) -> bool:
        """Whether something is left that only the teacher tells: see `fewstep.pipeline.config.reading.resolved`."""
        steps = (name.steps for name in self.samplers)
        return ALL in steps or any(each.sigma_max is None for each in self.students.values())

    def chooses(self, training: Training) -> bool:
        """Return whether noise levels, or one of several averages, are chosen by real images."""
        config = training.config
        probed = config.quality_kimg is not None or len(config.train.halflives) > 1
        return probed or (config.method.student == "consistency" and bool(self.steps_of(training.student)))

    def steps_of(self, student: str) -> tuple[int, ...]:
        """Return the numbers of steps above one that noise levels of a student are chosen for, ascending."""
        given = self.students[student].steps
        asked = (parse_own(text) for text in self.eval.samplers)
        found = given or [name.steps for name in asked if name.subject in ("student", student)]
        return tuple(sorted({steps for steps in found if steps > 1}))

    def check_steps(self, timesteps: int) -> None:
        """Raise UserError where a sampler has more steps than the teacher has timesteps."""
        for name in self.samplers:
            if name.kind == "teacher" and name.steps > timesteps:
                remedy = f"{name} has more steps than the teacher has timesteps, {timesteps}"
                raise UserError("eval.samplers", list(self.eval.samplers), remedy)

    def check_shape(self, shape: tuple[int | None, int | None, int | None]) -> None:
        """Raise UserError where images of this (C, H, W) do not suit the teacher's network; None: not known yet."""
        levels = len(self.teacher.network.channels) if isinstance(self.teacher, TrainedTeacher) else 1
        factor = 2 ** (levels - 1)
        for side in shape[1:]:
            if side is not None and side % factor:
                remedy = f"must be divisible by {factor} for the {levels} levels of teacher.network"
                raise UserError("data.image_size", side, remedy)

    @property
    def folder(self) -> Path:
        """The run's folder, with ~ expanded."""
        return self.out.expanduser() / self.name

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration as JSON-able values: `config_from_dict` makes it again."""
        values = self.model_dump(mode="json")
        students, measured = values.pop("students"), values.pop("eval")
        alone = list(students) == ["student"]
        return values | ({"student": students["student"]} if alone else {"students": students}) | {"eval": measured}
