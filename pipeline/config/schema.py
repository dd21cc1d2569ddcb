"""The configuration: frozen dataclasses, validated on construction.

Each field carries its documentation, which `fewstep run --help` shows. Every fault is a UserError that names
the dotted key. Training lengths are in kimg (thousands of images). Nothing here imports torch.
"""

import re
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from fewstep.errors import UserError
from fewstep.files import sha256_json
from fewstep.pipeline.config.checks import choice, distinct, entries, flag, number, section, weights_of, whole

Extractor = Literal["digits-cnn", "inception", "dinov2"]
Decay = Literal["constant", "cosine", "linear"]
Precision = Literal["fp32", "bf16"]
Prediction = Literal["v_prediction", "epsilon", "sample"]
Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
ObjectiveName = Literal["cd", "ect"]

FEATURES = {"digits-cnn": 64, "inception": 2048, "dinov2": 1024}
DIGITS_SHAPE = (1, 8, 8)
_SAMPLER = re.compile(
    r"teacher@(?P<solver>ddpm|ddim|dpmsolver\+\+|unipc|heun):(?P<steps>[1-9]\d{0,5})|student@(?P<few>[1248])"
)
_SAMPLER_FORM = "must be teacher@SOLVER:N (SOLVER: ddpm, ddim, dpmsolver++, unipc, heun) or student@N (N: 1, 2, 4, 8)"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they become one uint8 tensor."""

    source: Annotated[str, "digits (shipped), hub:ID, parquet:PATH (file or folder) or imagefolder:PATH"]
    split: Annotated[str, "split the networks learn from"] = "train"
    reference_split: Annotated[str | None, "split that quality is measured against; null: the training images"] = None
    choice_split: Annotated[str | None, "split that noise levels are chosen on; null: some training images"] = None
    image_column: Annotated[str | None, "column of the images; null: found by its type or name"] = None
    label_column: Annotated[str | None, "column of the labels; null: found by its type or name"] = None
    image_size: Annotated[int | None, "resize the shorter side and crop to this many pixels; null: as they are"] = None
    channels: Annotated[int | None, "1 (grey) or 3 (RGB): convert; null: as they are"] = None
    horizontal_flip: Annotated[bool, "mirror training images at random"] = False

    def __post_init__(self) -> None:
        kind, _, place = self.source.partition(":") if isinstance(self.source, str) else ("", "", "")
        if self.source != "digits" and (kind not in ("hub", "parquet", "imagefolder") or not place.strip()):
            raise UserError("data.source", self.source, "must be digits, hub:ID, parquet:PATH or imagefolder:PATH")
        for key in ("split", "reference_split", "choice_split", "image_column", "label_column"):
            value = getattr(self, key)
            if value == "" or not isinstance(value, str | None) or (key == "split" and value is None):
                raise UserError(f"data.{key}", value, "must be a name")
        if self.choice_split == (self.reference_split or self.split):
            remedy = "is what quality is measured against: choose on another split, or leave it out"
            raise UserError("data.choice_split", self.choice_split, remedy)
        if self.image_size is not None:
            whole("data.image_size", self.image_size, least=1, most=4096)
        if self.channels is not None:
            choice("data.channels", self.channels, (1, 3))
        flag("data.horizontal_flip", self.horizontal_flip)
        if self.source == "digits":
            if self.split != "train":
                raise UserError("data.split", self.split, "the digits have one split, train")
            for key in ("reference_split", "choice_split", "image_column", "label_column"):
                if getattr(self, key) is not None:
                    raise UserError(f"data.{key}", getattr(self, key), "has no effect on digits: leave it out")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The teacher's UNet; the student has the same."""

    channels: Annotated[tuple[int, ...], "channels of each level, from full resolution down"]
    layers_per_block: Annotated[int, "residual blocks per level"]
    attention: Annotated[tuple[bool, ...], "self-attention at each level"]
    norm_groups: Annotated[int, "groups of each group normalisation; divides every entry of channels"]
    dropout: Annotated[float, "dropout probability"] = 0.0

    def __post_init__(self) -> None:
        where = "teacher.network"
        entries(f"{where}.channels", self.channels)
        entries(f"{where}.attention", self.attention)
        whole(f"{where}.layers_per_block", self.layers_per_block, least=1)
        whole(f"{where}.norm_groups", self.norm_groups, least=1)
        number(f"{where}.dropout", self.dropout, least=0, below=1)
        for channels in self.channels:
            whole(f"{where}.channels", channels, least=1)
            if channels % self.norm_groups:
                remedy = f"{channels} is not divisible by {where}.norm_groups = {self.norm_groups}"
                raise UserError(f"{where}.channels", list(self.channels), remedy)
        for attends in self.attention:
            flag(f"{where}.attention", attends)
        if len(self.attention) != len(self.channels):
            remedy = f"must have {len(self.channels)} entries, one for each entry of {where}.channels"
            raise UserError(f"{where}.attention", list(self.attention), remedy)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Validated by the section that holds it, which knows its dotted name.
    """

    kimg: Annotated[float, "length in thousands of images"]
    batch_size: Annotated[int, "images per optimizer step, over all processes"]
    slices: Annotated[int, "fixed parts of the batch, each with its own randomness; divides batch_size"] = 1
    learning_rate: Annotated[float, "peak learning rate"]
    warmup_kimg: Annotated[float, "linear warm-up of the learning rate, in kimg"]
    decay: Annotated[Decay, "course of the learning rate after the warm-up"] = "constant"
    betas: Annotated[tuple[float, float], "AdamW betas"]
    weight_decay: Annotated[float, "AdamW weight decay"]
    ema_halflife_kimg: Annotated[float, "half-life of the weight average, in kimg"]
    gradient_clip: Annotated[float, "largest norm of the gradient"]
    precision: Annotated[Precision, "arithmetic of the networks; weights stay float32"] = "fp32"
    checkpoint_kimg: Annotated[float, "kimg between checkpoints"]
    keep_checkpoints: Annotated[int, "checkpoints kept"] = 2
    log_every: Annotated[int, "optimizer steps between log lines"] = 20

    def check(self, where: str) -> None:
        """Raise UserError for a value out of range; `where` is this section's dotted name."""
        whole(f"{where}.batch_size", self.batch_size, least=1)
        number(f"{where}.kimg", self.kimg, above=0)
        if self.kimg * 1000 < self.batch_size:
            remedy = f"is less than one batch of {self.batch_size} images; give at least {self.batch_size / 1000}"
            raise UserError(f"{where}.kimg", self.kimg, remedy)
        whole(f"{where}.slices", self.slices, least=1)
        if self.batch_size % self.slices:
            raise UserError(f"{where}.slices", self.slices, f"must divide {where}.batch_size = {self.batch_size}")
        number(f"{where}.learning_rate", self.learning_rate, above=0)
        number(f"{where}.warmup_kimg", self.warmup_kimg, least=0)
        if self.warmup_kimg >= self.kimg:
            raise UserError(f"{where}.warmup_kimg", self.warmup_kimg, f"must be less than {where}.kimg = {self.kimg}")
        choice(f"{where}.decay", self.decay, get_args(Decay))
        entries(f"{where}.betas", self.betas, length=2)
        for beta in self.betas:
            number(f"{where}.betas", beta, least=0, below=1)
        number(f"{where}.weight_decay", self.weight_decay, least=0)
        number(f"{where}.ema_halflife_kimg", self.ema_halflife_kimg, above=0)
        number(f"{where}.gradient_clip", self.gradient_clip, above=0)
        choice(f"{where}.precision", self.precision, get_args(Precision))
        number(f"{where}.checkpoint_kimg", self.checkpoint_kimg, above=0)
        whole(f"{where}.keep_checkpoints", self.keep_checkpoints, least=1)
        whole(f"{where}.log_every", self.log_every, least=1)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The diffusion model that is distilled."""

    source: Annotated[str, "train (train one here), or a diffusers DDPM folder or hub id"] = "train"
    prediction: Annotated[Prediction, "what the network predicts"]
    schedule: Annotated[Schedule, "noise schedule, by its diffusers name"]
    num_train_timesteps: Annotated[int, "timesteps of the noise schedule"] = 1000
    network: NetworkConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source.strip():
            raise UserError("teacher.source", self.source, "must be train, a folder or a hub id")
        choice("teacher.prediction", self.prediction, get_args(Prediction))
        choice("teacher.schedule", self.schedule, get_args(Schedule))
        whole("teacher.num_train_timesteps", self.num_train_timesteps, least=10, most=100_000)
        section("teacher.network", self.network, NetworkConfig)
        section("teacher.train", self.train, TrainConfig).check("teacher.train")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The consistency model and how it is distilled."""

    objective: Annotated[ObjectiveName, "cd (consistency distillation, Heun bridge) or ect (easy consistency tuning)"]
    sigma_min: Annotated[float, "smallest noise level"] = 0.002
    sigma_max: Annotated[float, "largest noise level"] = 80.0
    doublings: Annotated[int, "how often the pairs of noise levels come twice as close over the run"] = 6
    refit_steps: Annotated[int, "optimizer steps that refit the time embedding before distillation"] = 4000
    regression_kimg: Annotated[float, "length of the regression onto a teacher that cannot be folded"] = 20.0
    search_images: Annotated[int, "images per list of noise levels in the search for those of 2 and 4 steps"]
    train: TrainConfig

    def __post_init__(self) -> None:
        choice("student.objective", self.objective, get_args(ObjectiveName))
        number("student.sigma_min", self.sigma_min, above=0)
        number("student.sigma_max", self.sigma_max, above=0)
        if self.sigma_min >= self.sigma_max:
            raise UserError(
                "student.sigma_min", self.sigma_min, f"must be less than student.sigma_max = {self.sigma_max}"
            )
        whole("student.doublings", self.doublings, least=0, most=30)
        whole("student.refit_steps", self.refit_steps, least=0)
        number("student.regression_kimg", self.regression_kimg, least=0)
        whole("student.search_images", self.search_images, least=32, most=2**20 - 1)
        section("student.train", self.train, TrainConfig).check("student.train")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How quality and speed are measured."""

    extractor: Annotated[Extractor, "digits-cnn (shipped, 8x8 grey only), inception (FID) or dinov2 (FD-DINOv2)"]
    inception_weights: Annotated[Path | None, "file of the Inception weights; null: downloaded by torch-fidelity"] = (
        None
    )
    dinov2_weights: Annotated[Path | None, "file of the DINOv2 ViT-L/14 weights; null: downloaded from Meta"] = None
    reference: Annotated[Path | None, "file of `fewstep reference`, or others' mu and sigma; null: none"] = None
    images: Annotated[int, "generated images per seed block"]
    seed_blocks: Annotated[int, "seed blocks; their spread is the error bar"] = 3
    samplers: Annotated[tuple[str, ...], _SAMPLER_FORM.removeprefix("must be ")] = (
        "teacher@ddpm:1000",
        "teacher@ddim:50",
        "teacher@ddim:20",
        "teacher@ddim:10",
        "teacher@dpmsolver++:20",
        "teacher@dpmsolver++:10",
        "teacher@unipc:10",
        "teacher@heun:18",
        "student@1",
        "student@2",
        "student@4",
    )
    training_features: Annotated[int, "training images whose features are searched for near-copies; 0: none"] = 0
    ddpm_seed_blocks: Annotated[int, "seed blocks of ddpm samplers; 0: timed only"] = 1
    batch_size: Annotated[int, "images per batch when generating and extracting features"] = 250
    kid_subset_size: Annotated[int, "images per KID subset, at most images"]
    latency_runs: Annotated[int, "timed runs at batch 1"] = 100
    latency_seconds: Annotated[float, "time limit of those runs, in seconds per sampler"] = 10.0
    throughput_batch_sizes: Annotated[tuple[int, ...], "batch sizes tried for the throughput"]

    def __post_init__(self) -> None:
        choice("eval.extractor", self.extractor, get_args(Extractor))
        _ = self.extractor_weights  # refuses a file of another extractor
        whole("eval.images", self.images, least=2, most=2**20)
        if self.images <= (features := FEATURES[self.extractor]):
            remedy = f"is too few for the covariance of the {features:,} features of {self.extractor}"
            raise UserError("eval.images", self.images, f"{remedy}; give {features + 1:,} or more")
        whole("eval.seed_blocks", self.seed_blocks, least=1, most=4095)
        whole("eval.training_features", self.training_features, least=0)
        if self.training_features == 1:
            raise UserError("eval.training_features", 1, "is too few: no image has another one; give 0 or many")
        whole("eval.ddpm_seed_blocks", self.ddpm_seed_blocks, least=0)
        if self.ddpm_seed_blocks > self.seed_blocks:
            remedy = f"must be at most eval.seed_blocks = {self.seed_blocks}"
            raise UserError("eval.ddpm_seed_blocks", self.ddpm_seed_blocks, remedy)
        entries("eval.samplers", self.samplers)
        for sampler in self.samplers:
            parse_sampler(sampler)
        distinct("eval.samplers", self.samplers)
        whole("eval.batch_size", self.batch_size, least=1)
        whole("eval.kid_subset_size", self.kid_subset_size, least=2)
        if self.kid_subset_size > self.images:
            raise UserError(
                "eval.kid_subset_size", self.kid_subset_size, f"must be at most eval.images = {self.images}"
            )
        whole("eval.latency_runs", self.latency_runs, least=1)
        number("eval.latency_seconds", self.latency_seconds, above=0)
        entries("eval.throughput_batch_sizes", self.throughput_batch_sizes)
        for size in self.throughput_batch_sizes:
            whole("eval.throughput_batch_sizes", size, least=1)
        distinct("eval.throughput_batch_sizes", self.throughput_batch_sizes)

    @property
    def extractor_weights(self) -> Path | None:
        """The file given for the extractor in use; None: its published or shipped weights."""
        return weights_of(self.extractor, {"inception": self.inception_weights, "dinov2": self.dinov2_weights})


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Its folder is out/name."""

    name: Annotated[str, "name of the run, and of its folder"]
    seed: Annotated[int, "seed of everything random in training"] = 0
    device: Annotated[str, "auto (the accelerator there is) or cpu"] = "auto"
    out: Annotated[Path, "folder that holds the runs"] = Path("runs")
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    eval: EvalConfig

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise UserError("name", self.name, "must be letters, digits, '.', '_' and '-', as it names a folder")
        whole("seed", self.seed, least=0, most=2**31 - 1)
        choice("device", self.device, ("auto", "cpu"))
        section("data", self.data, DataConfig)
        section("teacher", self.teacher, TeacherConfig)
        section("student", self.student, StudentConfig)
        section("eval", self.eval, EvalConfig)
        if self.teacher.source == "train":
            self.check_steps(self.teacher.num_train_timesteps)
        known = DIGITS_SHAPE if self.data.source == "digits" else (None, None, None)
        size = self.data.image_size or known[1]
        self.check_shape((self.data.channels or known[0], size, size))

    def check_steps(self, timesteps: int) -> None:
        """Raise UserError where a sampler has more steps than the teacher has timesteps."""
        for sampler in self.eval.samplers:
            kind, _, steps = parse_sampler(sampler)
            if kind == "teacher" and steps > timesteps:
                remedy = f"{sampler} has more steps than the teacher has timesteps, {timesteps}"
                raise UserError("eval.samplers", list(self.eval.samplers), remedy)

    def check_shape(self, shape: tuple[int | None, int | None, int | None]) -> None:
        """Raise UserError where images of this (C, H, W) do not suit network or extractor; None: unknown."""
        channels, *sides = shape
        levels = len(self.teacher.network.channels)
        factor = 2 ** (levels - 1)
        for side in sides:
            if side is not None and side % factor:
                remedy = f"must be divisible by {factor} for the {levels} levels of teacher.network"
                raise UserError("data.image_size", side, remedy)
        if self.eval.extractor == "digits-cnn" and (
            channels not in (1, None) or any(s not in (8, None) for s in sides)
        ):
            raise UserError("eval.extractor", self.eval.extractor, "judges 8x8 grey images only: use inception")

    @property
    def folder(self) -> Path:
        """The run's folder, with ~ expanded."""
        return self.out.expanduser() / self.name

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration as JSON-able values: `config_from_dict` makes it again."""
        return jsonable(self)


def parse_sampler(name: str) -> tuple[str, str, int]:
    """A sampler's parts: ("teacher", "ddim", 50) for teacher@ddim:50, ("student", "", 2) for student@2."""
    found = _SAMPLER.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise UserError("eval.samplers", name, _SAMPLER_FORM)
    if found["few"]:
        return "student", "", int(found["few"])
    return "teacher", found["solver"], int(found["steps"])


def jsonable(value: object) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """A configuration, a section or a value of one, as JSON-able values: tuples as lists, paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, dict):
        return {key: jsonable(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def config_hash(value: object) -> str:
    """sha256 of a configuration, of one of its sections, or of any structure of them."""
    return sha256_json(jsonable(value))
