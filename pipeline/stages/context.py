"""What the stages of a run share: configuration, folder, device, data, and how training is set up."""

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from fewstep.errors import UserError, printable
from fewstep.files import read_json
from fewstep.pipeline.config.keys import validated
from fewstep.pipeline.config.schema import Config, DataConfig, Training
from fewstep.pipeline.config.teacher import TrainedTeacher
from fewstep.pipeline.config.training import TrainConfig
from fewstep.pipeline.data.load import found_lines
from fewstep.pipeline.data.training import TrainingData, open_training
from fewstep.pipeline.training import processes
from fewstep.pipeline.training.job import TrainingJob
from fewstep.pipeline.training.randomness import TRAINING_NUMBER, Stream, conversion_stream, key, keyed_generator
from fewstep.progress import say


class RunContext:
    """One run in progress."""

    def __init__(self, config: Config, folder: Path | None = None) -> None:
        self.config, self.folder = config, folder or config.folder
        self.device = processes.join(cpu=config.device == "cpu")
        self.until = "report"

    @cached_property
    def data(self) -> TrainingData:
        """The training images; opened when a stage needs them."""
        config = self.config.data
        say(f"data: reading {printable(config.source)}, split {printable(config.split)}")
        data = open_training(config, self.folder / "data", self._kept_facts(), checked=processes.leads())
        for line in found_lines(data.provenance):
            say(f"  {printable(line)}")
        self.config.check_shape(data.shape)
        return data

    @cached_property
    def num_classes(self) -> int:
        """How many classes the labels of the training images are of; UserError where the data have none."""
        if (found := self.data.num_classes) is None:
            remedy = "the data have no labels, which a class-conditional teacher needs"
            raise UserError("data.label_column", self.config.data.label_column, remedy)
        return found

    def labels_sha256(self) -> str:
        """What the classes of the training images are known by; UserError where the data have none."""
        assert self.num_classes
        return self.data.labels_sha256

    @property
    def conditional(self) -> bool:
        """Whether the teacher, and so its students, take classes."""
        if isinstance(self.config.teacher, TrainedTeacher):
            return self.config.teacher.class_conditional
        network = read_json(self.folder / "teacher" / "unet" / "config.json", {})
        return network.get("num_class_embeds") is not None

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Provenance of the training images; what data.json keeps of them while the data section is the same."""
        return self._kept_facts() or self.data.provenance | {"config": self.config.to_dict()["data"]}

    def _kept_facts(self) -> dict[str, Any] | None:
        """What data.json holds, None where there is none or it is of another data section."""
        path = self.folder / "data.json"
        kept = read_json(path, {}) if path.exists() else {}
        section = kept.get("config")
        with suppress(UserError):  # of another version
            if isinstance(section, dict) and _read_alike(validated(DataConfig, section, "data."), self.config.data):
                return kept
        return None

    def begin(self, until: str) -> None:
        """What the leading process finds or makes of the data before the others need it; `until`: the last stage."""
        self.until = until
        self.data_facts = processes.led(self._begun)

    def _begun(self) -> dict[str, Any]:
        if processes.number() > 1 and self.config.data.storage == "disk":
            self.data  # noqa: B018 - which makes the array
        return self.data_facts

    def title(self, student: str) -> str:
        """A student in what is printed."""
        return "student" if student == "student" else f"student {student}"

    def training_seed(self, training: Training) -> int:
        """The seed of all that is random in a training, the order of the images too; that of the first is the run's."""
        return self.config.seed if training.number == 1 else key(self.config.seed, TRAINING_NUMBER, training.number)

    def student_generator(self, training: Training, step: Stream) -> torch.Generator:
        """The randomness of a step of a student's conversion, its own for each name and training."""
        return keyed_generator(self.training_seed(training), conversion_stream(step, training.student))

    def training_job(
        self, stage: str, title: str, stream: Stream, config: TrainConfig, config_hash: str, seed: int | None = None
    ) -> TrainingJob:
        """The training part of a stage (teacher, students/NAME), with its places in the run folder.

        `title` is the dotted key of the section. The training's randomness depends on `stream` and `seed`; None: the
        run's.
        """
        if (slices := config.slices) is None:
            slices = processes.number()
            if config.batch_size % slices:
                remedy = f"cannot be shared by {slices} processes: give a multiple of it"
                raise UserError(f"{title}.train.batch_size", config.batch_size, remedy)
        return TrainingJob(
            title=title,
            stream=stream,
            data=self.data,
            labelled=self.conditional,
            workers=self.config.data.reading_processes,
            horizontal_flip=self.config.data.horizontal_flip,
            config=config,
            slices=slices,
            parts=processes.mine(slices),
            seed=self.config.seed if seed is None else seed,
            config_hash=config_hash,
            checkpoints=self.folder / "checkpoints" / stage,
            log=self.folder / "logs" / f"{stage}.jsonl",
            tensorboard=self.folder / "logs" / "tensorboard" / stage,
        )

    def accelerated(self, precision: str) -> Accelerator:
        """An Accelerator in the precision of a training section; accelerate's shared state keeps one at a time."""
        AcceleratorState._reset_state()
        if precision == "bf16" and self.device.type == "cpu" and not computes_in_bf16():
            say("  this processor has no arithmetic in bf16, so that train.precision fp32 is faster")
        return Accelerator(cpu=self.config.device == "cpu", mixed_precision="no" if precision == "fp32" else precision)


def _read_alike(one: DataConfig, other: DataConfig) -> bool:
    """Whether two sections have the same images, and the same provenance of them."""
    first, second = ({**each.numbers(), "storage": each.storage == "stream"} for each in (one, other))
    return first == second


def training_layout(precision: str) -> torch.memory_format:
    """The order of weights in memory in which a UNet trains fastest, in the precision of a training section.

    On a CPU that has bf16, contiguous is 1.3 times as fast there and channels_last a little faster in fp32. CUDA has no
    group norm for channels_last and copies back and forth.
    """
    return torch.contiguous_format if precision == "bf16" else torch.channels_last


def computes_in_bf16() -> bool:
    """Whether the processor multiplies in bf16 by itself; True where torch (before 2.10, or not on x86) cannot tell."""
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return found.get("architecture") != "x86_64" or any(found.get(each) for each in ("avx512_bf16", "amx_bf16"))
