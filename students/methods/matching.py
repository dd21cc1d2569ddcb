"""The matching finish of any method of consistency models."""

from typing import TYPE_CHECKING

from pydantic import Field

from fewstep.settings import Section

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.matching_finish import MatchingFinish
    from fewstep.teachers.guided import Guided
    from fewstep.teachers.interfaces import Objective
    from fewstep.teachers.preconditioned import Preconditioned


class Matching(Section):
    """Distribution matching (DMD2, Yin 2024) beside the method, in the last part of training."""

    weight: float = Field(default=1.0, gt=0, description="weight of the matching loss beside the method's own")
    share: float = Field(default=0.6, gt=0, le=1, description="last share of training that it takes part in")
    images: float = Field(default=0.5, gt=0, lt=1, description="share of a batch that it takes from the method")
    lr_scale: float = Field(default=0.5, gt=0, description="learning rate in this part, over that of its course")
    fake_lr_scale: float = Field(default=3.0, gt=0, description="learning rate of the fake denoiser, by the student's")
    at_sigma_max: float = Field(default=1.0, gt=0, le=1, description="share of its images that start as pure noise")
    mean: float = Field(default=0.0, description="mean of ln sigma of the noise under which images are compared")
    std: float = Field(default=1.2, gt=0, description="standard deviation of that ln sigma")

    def build(
        self, objective: "Objective", student: "ConsistencyModel", teacher: "Preconditioned | Guided"
    ) -> "MatchingFinish":
        """The objective around the method's own, which trains `student`."""
        from fewstep.students.matching import MatchingObjective
        from fewstep.students.matching_finish import MatchingFinish

        matching = MatchingObjective(
            student,
            teacher,
            alpha=None,
            fake_updates=1,
            fake_lr_scale=self.fake_lr_scale,
            at_sigma_max=self.at_sigma_max,
            mean=self.mean,
            std=self.std,
        )
        return MatchingFinish(
            objective, matching, weight=self.weight, share=self.share, images=self.images, lr_scale=self.lr_scale
        )
