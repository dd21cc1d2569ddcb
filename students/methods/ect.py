"""Easy Consistency Tuning."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from fewstep.errors import UserError
from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser

CLOSEST = 2**31
"""Up to this t/(t - r), with doublings = 30 and q = 2."""


class ECT(DistillationMethod):
    """Easy Consistency Tuning (Geng 2024): the data bridge; the teacher gives the starting weights alone.

    An image costs one student evaluation with its gradient and one of the target. The published recipe for CIFAR-10 is
    q = 2 with 8 doublings, in an hour q = 256 with none.
    """

    name: Literal["ect"] = Field(default="ect", description="ect (easy consistency tuning: learns from data alone)")
    doublings: int = Field(
        default=6, ge=0, le=30, description="how often the pairs of noise levels come closer by a factor q"
    )
    q: float = Field(default=2.0, gt=1, le=1e6, description="how much closer the pairs of noise levels come each time")

    @model_validator(mode="after")
    def _check(self) -> "ECT":
        if self.q ** (self.doublings + 1) > CLOSEST:
            remedy = f"brings t and r closer than float32 tells apart with {{here}}q = {self.q:g}: lower one of them"
            raise UserError("doublings", self.doublings, remedy)
        return self

    @property
    def follows_teacher(self) -> bool:
        """See `DistillationMethod`."""
        return False

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place; `teacher` is not evaluated."""
        from fewstep.students.bridges import data_bridge
        from fewstep.students.objective import ConsistencyObjective, pseudo_huber
        from fewstep.students.pairs import ECTPairs
        from fewstep.teachers.interfaces import Evaluations

        return ConsistencyObjective(
            student,
            pairs=ECTPairs(
                sigma_min=student.sigma_min, sigma_max=student.sigma_max, doublings=self.doublings, q=self.q
            ),
            bridge=data_bridge,
            distance=pseudo_huber(1e-8),
            cost=Evaluations(student=1, target=1),
        )
