"""Consistency distillation."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class CD(DistillationMethod):
    """Consistency distillation (Song 2023, algorithm 2): one step of the teacher's ODE from t to r.

    Of the teacher it reads its starting weights and D. An image costs one student evaluation with its gradient, one of
    the target, and of the teacher 2 (heun) or 1 (euler). The published recipe is a grid of 18 points (40 for
    ImageNet), a target EMA of 0 to 0.95, and LPIPS or l2.
    """

    name: Literal["cd"] = Field(default="cd", description="cd (consistency distillation along the teacher's ODE)")
    solver: Literal["heun", "euler"] = Field(default="heun", description="the step: 2 teacher evaluations, or 1")
    grid: int | None = Field(
        default=None,
        ge=2,
        le=10_000,
        description="pairs are neighbours on a Karras grid of so many points; null: ECT's",
    )
    doublings: int = Field(default=6, ge=0, le=30, description="how often ECT's pairs come twice as close")
    target_ema: float = Field(
        default=0.0, ge=0, lt=1, description="decay per step of the target, an average of the student; 0: itself"
    )
    distance: Literal["huber", "l2"] = Field(
        default="huber", description="the norm of the difference (pseudo-Huber of c = 1e-8), or its square"
    )

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place."""
        from fewstep.students.bridges import euler_bridge, heun_bridge
        from fewstep.students.objective import ConsistencyObjective, constant_decay, pseudo_huber, squared
        from fewstep.students.pairs import ECTPairs, KarrasPairs
        from fewstep.teachers.interfaces import Evaluations

        bridge, evaluations = (heun_bridge, 2) if self.solver == "heun" else (euler_bridge, 1)
        ends = {"sigma_min": student.sigma_min, "sigma_max": student.sigma_max}
        return ConsistencyObjective(
            student,
            pairs=KarrasPairs(**ends, num=self.grid) if self.grid else ECTPairs(**ends, doublings=self.doublings),
            bridge=bridge(teacher),
            distance=pseudo_huber(1e-8) if self.distance == "huber" else squared,
            cost=Evaluations(student=1, target=1, teacher=evaluations),
            decay=constant_decay(self.target_ema),
        )
