"""One training run of a network: the train section of a teacher and of a student."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fewstep.errors import UserError
from fewstep.pipeline.config.constraints import Count, Positive, Share
from fewstep.settings import Section, no_number


class TrainConfig(Section):
    """One training run."""

    kimg: Positive = Field(description="length in thousands of images")
    batch_size: Count = Field(description="images per optimizer step, over all processes")
    slices: Count | None = Field(
        None,
        description="parts of the batch, each with its own randomness; divides batch_size; null: one for each process",
    )
    learning_rate: Positive = Field(description="peak learning rate")
    warmup_kimg: float = Field(
        ge=0, description="linear warm-up of the learning rate in kimg, at most a tenth of the training"
    )
    decay: Literal["constant", "cosine", "linear"] = Field("constant", description="learning rate after the warm-up")
    optimizer: Literal["adamw", "radam"] = Field(
        default="adamw", description="adamw, or radam (adamw, its first steps held)"
    )
    betas: tuple[Share, Share] = Field(description="betas of the optimizer")
    weight_decay: float = Field(ge=0, description="weight decay, decoupled from the gradient")
    ema_halflife_kimg: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        title="a number greater than 0, or of a student a list of them",
        description="half-life of the weight average in kimg, at most a twentieth of the images seen; of several the "
        "average with the best images is kept",
    )
    gradient_clip: Positive = Field(description="largest norm of the gradient, of each group of parameters by itself")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="arithmetic; weights stay float32")
    compile: bool = no_number(
        False, description="torch.compile: a minute or more at the start, then faster; the same but for rounding"
    )
    gradient_checkpointing: bool = no_number(
        False, description="compute activations again in the backward pass: less memory, a third more time"
    )
    checkpoint_kimg: Positive = no_number(description="kimg between checkpoints")
    keep_checkpoints: Count = no_number(2, description="checkpoints kept")
    log_every: Count = no_number(20, description="optimizer steps between log lines")

    @property
    def halflives(self) -> dict[str, float]:
        """The half-lives of the weight averages in kimg, by what logs and manifests call them ("5", "0.5")."""
        given = self.ema_halflife_kimg if isinstance(self.ema_halflife_kimg, tuple) else (self.ema_halflife_kimg,)
        return {repr(float(each)).removesuffix(".0"): each for each in given}

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        given, most = self.ema_halflife_kimg, self.kimg / 20  # see EMA: longer ones are the same average to the bit
        if isinstance(given, tuple) and len({min(each, most) for each in given}) < len(given):
            remedy = f"names an average twice: with {{here}}kimg = {self.kimg} a half-life is held to {most:g}"
            raise UserError("ema_halflife_kimg", list(given), remedy)
        if self.kimg * 1000 < self.batch_size:
            remedy = f"is less than one batch of {self.batch_size} images; give at least {self.batch_size / 1000}"
            raise UserError("kimg", self.kimg, remedy)
        if self.slices is not None and self.batch_size % self.slices:
            raise UserError("slices", self.slices, f"must divide {{here}}batch_size = {self.batch_size}")
        return self
