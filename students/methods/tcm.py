"""Truncated consistency training."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class TCM(DistillationMethod):
    """Truncated consistency models (Lee 2024): ECT, then the noise levels above the boundary alone.

    The second stage leaves the levels below the boundary to a frozen copy of the first stage's student, which is its
    target there, and is itself not trained on them. So what is saved is good from the boundary up: the levels of two,
    four and eight steps are chosen there (stock calls of four or eight steps without those timesteps go below).
    The teacher gives the starting weights alone. An image costs one student evaluation with its gradient and one of
    the target.
    """

    name: Literal["tcm"] = Field(default="tcm", description="tcm (truncated consistency models: from data, two stages)")
    doublings: int = Field(default=6, ge=0, le=30, description="how often the pairs come twice as close in stage one")
    stage_one: float = Field(default=0.5, gt=0, lt=1, description="share of training that all noise levels get")
    boundary: float = Field(default=1.0, gt=0, description="lowest noise level of the second stage")

    @property
    def follows_teacher(self) -> bool:
        """See `DistillationMethod`."""
        return False

    @property
    def lowest_level(self) -> float:
        """See `DistillationMethod`: the boundary."""
        return self.boundary

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place; `teacher` is not evaluated."""
        from fewstep.students.pairs import ECTPairs
        from fewstep.students.truncated import TruncatedObjective, TruncatedPairs

        ect = ECTPairs(sigma_min=student.sigma_min, sigma_max=student.sigma_max, doublings=self.doublings)
        return TruncatedObjective(
            student, pairs=TruncatedPairs(ect=ect, boundary=self.boundary, stage_one=self.stage_one)
        )
