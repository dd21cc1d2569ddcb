"""Consistency training."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from fewstep.errors import UserError
from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class CT(DistillationMethod):
    """Consistency training (Song 2023, algorithm 3): the data bridge on a Karras grid that grows, a target EMA.

    The teacher gives the starting weights alone. An image costs one student evaluation with its gradient and one of
    the target. The schedule is in shares of training: the grid has s0 intervals at its start and s1 at its end. The
    paper's distances are LPIPS and l2; its sigma_min is 0.002.
    """

    name: Literal["ct"] = Field(default="ct", description="ct (consistency training: from data, on a growing grid)")
    s0: int = Field(default=2, ge=2, le=10_000, description="intervals of the grid at the start")
    s1: int = Field(default=150, ge=2, le=10_000, description="intervals of the grid at the end")
    mu0: float = Field(default=0.9, gt=0, lt=1, description="decay per step of the target at the start")
    distance: Literal["huber", "l2"] = Field(
        default="huber", description="the norm of the difference (pseudo-Huber of c = 1e-8), or its square"
    )

    @model_validator(mode="after")
    def _check(self) -> "CT":
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
        from fewstep.students.objective import ConsistencyObjective, pseudo_huber, squared
        from fewstep.students.pairs import CTPairs
        from fewstep.teachers.interfaces import Evaluations

        pairs = CTPairs(sigma_min=student.sigma_min, sigma_max=student.sigma_max, s0=self.s0, s1=self.s1, mu0=self.mu0)
        return ConsistencyObjective(
            student,
            pairs=pairs,
            bridge=data_bridge,
            distance=pseudo_huber(1e-8) if self.distance == "huber" else squared,
            cost=Evaluations(student=1, target=1),
            decay=pairs.decay,
        )
