"""Progressive distillation."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from fewstep.errors import UserError
from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.ddim import DDIMStudent
    from fewstep.students.progressive import ProgressiveDistillation
    from fewstep.teachers.interfaces import Denoiser


class PD(DistillationMethod):
    """Progressive distillation (Salimans & Ho 2022): two DDIM steps become one, again and again, down to one step."""

    student: ClassVar[Literal["consistency", "ddim"]] = "ddim"

    name: Literal["pd"] = Field(
        default="pd", description="pd (progressive distillation: halves the teacher's DDIM steps, saves a DDIMPipeline)"
    )
    start_steps: int = Field(default=16, ge=2, le=1024, description="DDIM steps to begin with: a power of 2")

    @model_validator(mode="after")
    def _check(self) -> "PD":
        if self.start_steps.bit_count() != 1:
            raise UserError("start_steps", self.start_steps, "must be a power of 2: it is halved down to 1")
        return self

    def build(self, student: "DDIMStudent", teacher: "Denoiser") -> "ProgressiveDistillation":
        """The objective that trains `student` in place; it begins as `teacher`, whose own copy is not evaluated.

        UserError: the schedule has fewer timesteps than the method starts with.
        """
        from fewstep.students.progressive import ProgressiveDistillation

        if self.start_steps > student.most_steps:
            remedy = f"is more than the teacher has timesteps, {student.most_steps}"
            raise UserError("student.method.start_steps", self.start_steps, remedy)
        return ProgressiveDistillation(student, self.start_steps)
