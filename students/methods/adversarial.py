"""The adversarial finish of any method."""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from fewstep.errors import UserError
from fewstep.settings import Section

if TYPE_CHECKING:
    from fewstep.students.adversarial import AdversarialFinish
    from fewstep.teachers.interfaces import Objective


class Adversarial(Section):
    """A discriminator on noised images, trained beside the student in the last part of training (DMD2, Yin 2024)."""

    weight: float = Field(default=7.0, gt=0, description="weight of the adversarial loss beside the method's own")
    share: float = Field(default=0.7, gt=0, le=1, description="last share of training that it takes part in")
    from_noise: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="images of one step from new noise that it judges, as a share of the batch; 0: the estimates that "
        "the method makes",
    )
    features: bool = Field(
        default=False, description="judge by features of the student's network as it began, and not by pixels"
    )
    width: int = Field(default=32, ge=4, le=1024, description="channels of its first layer, or of each of its heads")
    sigma_min: float = Field(default=0.01, gt=0, description="smallest noise level of the images that it sees")
    sigma_max: float = Field(default=0.2, gt=0, description="largest noise level of the images that it sees")
    penalty: float = Field(default=0.1, ge=0, description="weight of R1, the squared gradient at real images")
    lr_scale: float = Field(default=1.0, gt=0, description="its learning rate over the student's")

    @model_validator(mode="after")
    def _check(self) -> "Adversarial":
        if self.sigma_min >= self.sigma_max:
            raise UserError("sigma_min", self.sigma_min, f"must be less than {{here}}sigma_max = {self.sigma_max}")
        return self

    def build(self, objective: "Objective") -> "AdversarialFinish":
        """The objective around the method's own."""
        from fewstep.students.adversarial import AdversarialFinish

        return AdversarialFinish(
            objective,
            weight=self.weight,
            share=self.share,
            from_noise=self.from_noise,
            features=self.features,
            width=self.width,
            sigmas=(self.sigma_min, self.sigma_max),
            penalty=self.penalty,
            lr_scale=self.lr_scale,
        )
