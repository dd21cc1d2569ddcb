"""Improved consistency training."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from fewstep.errors import UserError
from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class ICT(DistillationMethod):
    """Improved consistency training (Song & Dhariwal 2023): lognormal noise levels, doubling grid, pseudo-Huber.

    The teacher gives the starting weights alone. An image costs one student evaluation with its gradient and one of
    the target, which is the student itself. c = 0.00054*sqrt(dim) of an image; the grid doubles at equal parts of
    training, whatever its length.
    """

    name: Literal["ict"] = Field(default="ict", description="ict (improved consistency training: from data)")
    s0: int = Field(default=10, ge=2, le=10_000, description="intervals of the grid at the start")
    s1: int = Field(default=1280, ge=2, le=10_000, description="intervals of the grid at the end")

    @model_validator(mode="after")
    def _check(self) -> "ICT":
        if self.s0 > self.s1:
            raise UserError("s0", self.s0, f"must be at most {{here}}s1 = {self.s1}")
        return self

    @property
    def follows_teacher(self) -> bool:
        """See `DistillationMethod`."""
        return False

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place; `teacher` is not evaluated."""
        from fewstep.students.bridges import data_bridge
        from fewstep.students.objective import ConsistencyObjective, pseudo_huber
        from fewstep.students.pairs import ICTPairs
        from fewstep.teachers.interfaces import Evaluations

        return ConsistencyObjective(
            student,
            pairs=ICTPairs(sigma_min=student.sigma_min, sigma_max=student.sigma_max, s0=self.s0, s1=self.s1),
            bridge=data_bridge,
            distance=pseudo_huber(0.00054 * math.prod(student.space.shape) ** 0.5),
            cost=Evaluations(student=1, target=1),
        )
