"""Distribution matching: DMD2 and SiD."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.matching import MatchingObjective
    from fewstep.teachers.preconditioned import Preconditioned


class DMD(DistillationMethod):
    """DMD2 (Yin 2024) or SiD (Zhou 2024): the scores of the student's images and of the teacher's are made to agree."""

    name: Literal["dmd"] = Field(default="dmd", description="dmd (distribution matching with a second denoiser)")
    loss: Literal["dmd", "sid"] = Field(default="dmd", description="dmd, or sid: score identity, without real images")
    alpha: float = Field(default=1.0, ge=0, le=2, description="of sid's loss; no part of dmd's")
    fake_updates: int = Field(default=3, ge=1, le=100, description="steps of the fake denoiser for one of the student")
    fake_lr_scale: float = Field(default=3.0, gt=0, description="learning rate of the fake denoiser, by the student's")
    at_sigma_max: float = Field(default=0.75, gt=0, le=1, description="share of the images that start as pure noise")
    mean: float = Field(default=0.0, description="mean of ln sigma of the noise under which images are compared")
    std: float = Field(default=1.2, gt=0, description="standard deviation of that ln sigma")

    def build(self, student: "ConsistencyModel", teacher: "Preconditioned") -> "MatchingObjective":
        """The objective that trains `student` in place."""
        from fewstep.students.matching import MatchingObjective

        return MatchingObjective(
            student,
            teacher,
            alpha=self.alpha if self.loss == "sid" else None,
            fake_updates=self.fake_updates,
            fake_lr_scale=self.fake_lr_scale,
            at_sigma_max=self.at_sigma_max,
            mean=self.mean,
            std=self.std,
        )
