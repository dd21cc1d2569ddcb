"""Consistency distillation on the steps of DDIM, as latent consistency models do."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.errors import UserError
from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.objective import ConsistencyObjective
    from fewstep.teachers.interfaces import Denoiser


class LCM(DistillationMethod):
    """The distillation of latent consistency models (Luo 2023): the teacher's DDIM steps, k timesteps at a time.

    Theirs are the grid (every k-th timestep of the teacher's schedule; one DDIM step, Euler in sigma, from each to the
    next), the Huber constant 0.001 (here over the whole image) and the target EMA. Not theirs: the consistency function
    is that of every student here, so that it saves as a stock ConsistencyModelPipeline, instead of c_skip and c_out in
    timesteps; guidance is one number (teacher.guidance); and the grid ends in the student's sigma_min and sigma_max.
    Of the teacher it reads its starting weights, D and the table of its schedule, which it must have. An image costs
    one student evaluation with its gradient, one of the target and one of the teacher.
    """

    name: Literal["lcm"] = Field(default="lcm", description="lcm (consistency distillation along the teacher's DDIM)")
    skip: int = Field(default=20, ge=1, le=100_000, description="timesteps of the teacher between pairs")
    target_ema: float = Field(default=0.95, ge=0, lt=1, description="decay per step of the target; 0: the student")

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ConsistencyObjective":
        """The objective that trains `student` in place; UserError for a teacher without the steps."""
        from fewstep.students.bridges import euler_bridge
        from fewstep.students.objective import ConsistencyObjective, constant_decay, pseudo_huber
        from fewstep.students.pairs import TablePairs
        from fewstep.teachers.interfaces import Evaluations

        table = teacher.space.table
        if table is None:
            remedy = "needs a teacher of discrete timesteps, and that of teacher.source is continuous: use cd"
            raise UserError("student.method.name", self.name, remedy)
        if self.skip >= len(table):
            remedy = f"must be less than the {len(table)} timesteps of the teacher (teacher.num_train_timesteps)"
            raise UserError("student.method.skip", self.skip, remedy)
        return ConsistencyObjective(
            student,
            pairs=TablePairs(
                sigma_min=student.sigma_min, sigma_max=student.sigma_max, table=table.cpu(), skip=self.skip
            ),
            bridge=euler_bridge(teacher),
            distance=pseudo_huber(1e-3),
            cost=Evaluations(student=1, target=1, teacher=1),
            decay=constant_decay(self.target_ema),
        )
