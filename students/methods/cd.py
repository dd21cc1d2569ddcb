"""Consistency distillation."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.settings import Section

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class CD(Section):
    """Consistency distillation (Song 2023, algorithm 2): one step of the teacher's ODE from t to r."""

    name: Literal["cd"] = Field(default="cd", description="cd (consistency distillation along the teacher's ODE)")
    solver: Literal["heun", "euler"] = Field(default="heun", description="the step: 2 teacher evaluations, or 1")
    grid: int | None = Field(
        default=None,
        ge=2,
        le=10_000,
        description="pairs are neighbours on a Karras grid of so many points; null: ECT's",
    )
    doublings: int = Field(default=6, ge=0, le=30, description="how often ECT's pairs come twice as close")

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place."""
        from fewstep.students.bridges import euler_bridge, heun_bridge
        from fewstep.students.objective import ConsistencyObjective, pseudo_huber
        from fewstep.students.pairs import ECTPairs, KarrasPairs
        from fewstep.teachers.interfaces import Evaluations

        bridge, evaluations = (heun_bridge, 2) if self.solver == "heun" else (euler_bridge, 1)
        ends = {"sigma_min": student.sigma_min, "sigma_max": student.sigma_max}
        return ConsistencyObjective(
            student,
            pairs=KarrasPairs(**ends, num=self.grid) if self.grid else ECTPairs(**ends, doublings=self.doublings),
            bridge=bridge(teacher),
            distance=pseudo_huber(1e-8),
            cost=Evaluations(student=1, target=1, teacher=evaluations),
        )
