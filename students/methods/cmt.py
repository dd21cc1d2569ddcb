"""Consistency Mid-Training: trajectory regression."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fewstep.students.methods.base import DistillationMethod

if TYPE_CHECKING:
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.students.regression import TrajectoryRegression
    from fewstep.students.trajectories import Trajectories


class CMT(DistillationMethod):
    """Trajectory regression (Hu 2025, Consistency Mid-Training): every point of a trajectory maps to its end.

    Of the teacher it reads the trajectories that were made before (`trajectories.number` times `.steps` evaluations);
    training costs one student evaluation an image and none of the teacher. Any parametrisation of the teacher serves.
    """

    reads_trajectories: ClassVar[bool] = True

    name: Literal["cmt"] = Field(default="cmt", description="cmt (regression onto the ends of the teacher's ODE)")
    at_sigma_max: float = Field(default=0.3, gt=0, lt=1, description="share of each batch that starts at sigma_max")

    def build(self, student: "ConsistencyModel", trajectories: "Trajectories") -> "TrajectoryRegression":
        """The objective that trains `student` in place."""
        from fewstep.students.objective import pseudo_huber
        from fewstep.students.regression import TrajectoryRegression

        return TrajectoryRegression(student, trajectories, distance=pseudo_huber(1e-8), at_sigma_max=self.at_sigma_max)
