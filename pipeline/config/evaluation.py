"""How quality and speed are measured: the eval section of the configuration."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from fewstep.errors import UserError
from fewstep.eval.features.table import EXTRACTORS
from fewstep.eval.seeds import BLOCK_IMAGES, RESULT_BLOCKS
from fewstep.pipeline.config.constraints import Count, Positive, distinct
from fewstep.pipeline.sampling.grammar import SOLVERS, STEPS, parse_own
from fewstep.settings import Section, no_number

_SAMPLER = (
    f"teacher@SOLVER:N (SOLVER: {', '.join(SOLVERS)}), teacher@ddpm:all or STUDENT@N (N: {', '.join(map(str, STEPS))})"
)
Sampler = Annotated[str, AfterValidator(lambda text: str(parse_own(text))), Field(title=_SAMPLER)]


class JudgeConfig(Section):
    """The network whose features quality is measured by."""

    extractor: str = Field(
        pattern=f"^({'|'.join(EXTRACTORS)})$",
        title=f"one of {', '.join(EXTRACTORS)}",
        description=", ".join(f"{name} ({each.about})" for name, each in EXTRACTORS.items()),
    )
    weights: Path | None = no_number(None, description="file of the extractor's weights; null: shipped or downloaded")

    @model_validator(mode="after")
    def _check_weights(self) -> "JudgeConfig":
        if self.weights is not None and EXTRACTORS[self.extractor].shipped:
            remedy = f"has no effect with {{here}}extractor = {self.extractor}: leave it out"
            raise UserError("weights", str(self.weights), remedy)
        return self


class EvalConfig(JudgeConfig):
    """How quality and speed are measured."""

    reference: Path | None = Field(default=None, description="file of `fewstep reference`, or of mu and sigma")
    images: int = Field(ge=2, le=BLOCK_IMAGES, description="generated images per seed block")
    seed_blocks: int = Field(
        default=3, ge=1, le=RESULT_BLOCKS, description="seed blocks; their spread is the error bar"
    )
    samplers: tuple[Sampler, ...] = Field(
        default=(
            *("teacher@ddpm:all", "teacher@ddim:50", "teacher@ddim:20", "teacher@ddim:10", "teacher@dpmsolver++:20"),
            *("teacher@dpmsolver++:10", "teacher@unipc:10", "teacher@heun:18", "student@1", "student@2", "student@4"),
        ),
        min_length=1,
        description="what is measured, as SUBJECT@SOLVER:N or SUBJECT@N; student stands for every student, ddpm:all "
        "for DDPM with as many steps as the teacher has",
    )
    training_features: int = Field(default=0, ge=0, description="training images searched for near-copies; 0: none")
    ddpm_seed_blocks: int = Field(default=1, ge=0, description="seed blocks of ddpm samplers; 0: timed only")
    batch_size: Count = Field(default=250, description="images per batch when generating and extracting features")
    kid_subset_size: int | None = Field(
        default=None,
        ge=2,
        description="images per KID subset; null: 1000 with an extractor of 1000 features or more, otherwise 100, or "
        "as many as there are if they are fewer",
    )
    latency_runs: Count = Field(default=100, description="timed runs at batch 1")
    latency_seconds: Positive = Field(default=10.0, description="time limit of those runs, in seconds per sampler")
    throughput_batch_sizes: tuple[Count, ...] = Field(min_length=1, description="tried for the throughput")

    @model_validator(mode="after")
    def _check(self) -> "EvalConfig":
        distinct("throughput_batch_sizes", self.throughput_batch_sizes)
        if self.training_features == 1:
            raise UserError("training_features", 1, "is too few: no image has another one; give 0 or many")
        if self.ddpm_seed_blocks > self.seed_blocks:
            remedy = f"must be at most {{here}}seed_blocks = {self.seed_blocks}"
            raise UserError("ddpm_seed_blocks", self.ddpm_seed_blocks, remedy)
        if self.kid_subset_size is not None and self.kid_subset_size > self.images:
            raise UserError("kid_subset_size", self.kid_subset_size, f"must be at most {{here}}images = {self.images}")
        return self

    def check_images(self) -> None:
        """Raise UserError where a seed block has too few images for the covariance of its features."""
        if self.images <= (features := EXTRACTORS[self.extractor].dim):
            remedy = f"is too few for the covariance of the {features:,} features of {self.extractor}"
            raise UserError("eval.images", self.images, f"{remedy}; give {features + 1:,} or more")

    def kid_subset(self, real: int) -> int:
        """Return the number of images of a KID subset, against `real` images. UserError: more than there are."""
        if self.kid_subset_size is None:
            return min(1000 if EXTRACTORS[self.extractor].dim >= 1000 else 100, self.images, real)
        if self.kid_subset_size > real:
            raise UserError(
                "eval.kid_subset_size",
                self.kid_subset_size,
                f"must be at most the {real:,} real images; give less, or null",
            )
        return self.kid_subset_size
