"""Easy Consistency Tuning."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.settings import Section

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class ECT(Section):
    """Easy Consistency Tuning (Geng 2024): the data bridge; the teacher gives the starting weights alone."""

    name: Literal["ect"] = Field(default="ect", description="ect (easy consistency tuning: learns from data alone)")
    doublings: int = Field(
        default=6, ge=0, le=30, description="how often the pairs of noise levels come twice as close"
    )

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place; `teacher` is not evaluated."""
        from fewstep.students.bridges import data_bridge
        from fewstep.students.objective import ConsistencyObjective, pseudo_huber
        from fewstep.students.pairs import ECTPairs
        from fewstep.teachers.interfaces import Evaluations

        return ConsistencyObjective(
            student,
            pairs=ECTPairs(sigma_min=student.sigma_min, sigma_max=student.sigma_max, doublings=self.doublings),
            bridge=data_bridge,
            distance=pseudo_huber(1e-8),
            cost=Evaluations(student=1, target=1),
        )
