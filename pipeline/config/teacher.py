"""The teacher section: a diffusion model that is trained here, or one that is there already."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fewstep.errors import UserError
from fewstep.pipeline.config.constraints import Count, Share, Text
from fewstep.pipeline.config.training import TrainConfig
from fewstep.settings import Section

GUIDANCE: Any = Field(
    default=1.0,
    ge=0,
    le=100,
    description="w of D(none) + w*(D(class) - D(none)), which its samplers follow and its students learn; 1: none",
)


class NetworkConfig(Section):
    """The teacher's UNet; the student has the same."""

    channels: tuple[Count, ...] = Field(min_length=1, description="channels of each level, from full resolution down")
    layers_per_block: Count = Field(description="residual blocks per level")
    attention: tuple[bool, ...] = Field(min_length=1, description="self-attention at each level")
    norm_groups: Count = Field(description="groups of each group normalisation; divides every entry of channels")
    dropout: Share = Field(default=0.0, description="dropout probability")

    @model_validator(mode="after")
    def _check(self) -> "NetworkConfig":
        for channels in self.channels:
            if channels % self.norm_groups:
                remedy = f"{channels} is not divisible by {{here}}norm_groups = {self.norm_groups}"
                raise UserError("channels", list(self.channels), remedy)
        if len(self.attention) != len(self.channels):
            remedy = f"must have {len(self.channels)} entries, one for each entry of {{here}}channels"
            raise UserError("attention", list(self.attention), remedy)
        return self


class TrainedTeacher(Section):
    """The diffusion model that is distilled: trained here."""

    source: Literal["train"] = Field(
        default="train",
        title="train, a folder or a hub id",
        description="train (train one here), or a diffusers folder or hub id, with which the other keys are left out",
    )
    prediction: Literal["v_prediction", "epsilon", "sample", "edm", "flow_matching", "ve"] = Field(
        description="what the network predicts: of a DDPM, or as EDM, flow matching or a score network of VE has it"
    )
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = Field(
        description="noise schedule of a DDPM, by its diffusers name; no part of the others"
    )
    num_train_timesteps: int = Field(default=1000, ge=10, le=100_000, description="timesteps of the noise schedule")
    class_conditional: bool = Field(default=False, description="learn the classes of the data's labels")
    label_dropout: Share = Field(
        default=0.1, description="share of images without their class, for guidance; no part of an unconditional one"
    )
    guidance: float = GUIDANCE
    network: NetworkConfig
    train: TrainConfig

    @property
    def has_schedule(self) -> bool:
        """Whether it is a DDPM, with timesteps."""
        return self.prediction in ("v_prediction", "epsilon", "sample")

    @property
    def null_class(self) -> bool:
        """Whether it learns images without their class too, so that it can be guided."""
        return self.class_conditional and self.label_dropout > 0

    @model_validator(mode="after")
    def _check(self) -> "TrainedTeacher":
        if self.guidance != 1 and not self.null_class:
            raise UserError(
                "guidance", self.guidance, "needs {here}class_conditional and a {here}label_dropout above 0"
            )
        return self


class LoadedTeacher(Section):
    """The diffusion model that is distilled: one that is there already."""

    source: str = Field(pattern=r"\S", title="train, a folder or a hub id", description="a diffusers folder or hub id")
    revision: Text | None = Field(default=None, description="branch, tag or commit of a hub id; null: its newest")
    null_class: bool = Field(default=False, description="the last of a network's classes means none: it can be guided")
    guidance: float = GUIDANCE


def _kind_of_teacher(value: Any) -> str:  # noqa: ANN401 - whatever stands in a file
    source = value.get("source", "train") if isinstance(value, dict) else getattr(value, "source", "train")
    return "trained" if source == "train" else "loaded"


Teacher = Annotated[
    Annotated[TrainedTeacher, Tag("trained")] | Annotated[LoadedTeacher, Tag("loaded")], Discriminator(_kind_of_teacher)
]
