"""Consistency distillation."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.settings import Section

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class CD(Section):
    """Consistency distillation (Song 2023, algorithm 2): one Heun step of the teacher's ODE, on ECT's pairs."""

    name: Literal["cd"] = Field(default="cd", description="cd (consistency distillation: one Heun step of the teacher)")
    doublings: int = Field(
        default=6, ge=0, le=30, description="how often the pairs of noise levels come twice as close"
    )

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place; `teacher` is evaluated twice an image."""
        from fewstep.students.bridges import heun_bridge
        from fewstep.students.objective import ConsistencyObjective, pseudo_huber
        from fewstep.students.pairs import ECTPairs
        from fewstep.teachers.interfaces import Evaluations

        return ConsistencyObjective(
            student,
            pairs=ECTPairs(student.space, doublings=self.doublings),
            bridge=heun_bridge(teacher),
            distance=pseudo_huber(1e-8),
            cost=Evaluations(student=1, target=1, teacher=2),
        )
