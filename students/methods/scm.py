"""Continuous-time consistency: sCM."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.continuous import ContinuousObjective
    from fewstep.teachers.interfaces import Denoiser


class SCM(DistillationMethod):
    """sCM (Lu & Song 2024): the student does not change along the ODE, by its derivative and with no second point."""

    name: Literal["scm"] = Field(default="scm", description="scm (consistency in continuous time)")
    tangent: Literal["teacher", "data"] = Field(
        default="teacher", description="the direction of the ODE: the teacher's (distillation), or data's (training)"
    )
    mean: float = Field(default=-1.0, description="mean of ln sigma, normal and truncated to the student's range")
    std: float = Field(default=1.4, gt=0, description="standard deviation of ln sigma")
    warmup: float = Field(default=0.2, ge=0, le=1, description="share of training over which the tangent comes in")

    @property
    def follows_teacher(self) -> bool:
        """See `DistillationMethod`."""
        return self.tangent == "teacher"

    def build(self, student: "ConsistencyModel", teacher: "Denoiser") -> "ContinuousObjective":
        """The objective that trains `student` in place.

        UserError: the network has an operation without a derivative in forward mode.
        """
        import torch

        from fewstep.errors import UserError
        from fewstep.students.continuous import ContinuousObjective, derivatives, slow_time_embedding
        from fewstep.teachers.interfaces import some_class

        x, one = torch.zeros((1, *student.space.shape), device=student.device), torch.ones(1, device=student.device)
        try:
            derivatives(student, x, one, x, some_class(student.space, 1, student.device))
        except RuntimeError as error:
            reason, network = str(error).partition("\n")[0], type(student.network).__name__
            remedy = f"the teacher's network, {network}, has no forward derivative ({reason}): use another method"
            raise UserError("student.method", self.name, remedy) from error
        slow_time_embedding(student)
        along = teacher if self.tangent == "teacher" else None
        return ContinuousObjective(student, along, mean=self.mean, std=self.std, warmup=self.warmup)
