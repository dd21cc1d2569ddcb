"""What a method of distillation says of itself beside its settings."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fewstep.settings import Section

if TYPE_CHECKING:
    from fewstep.teachers.interfaces import Objective


class DistillationMethod(Section):
    """The settings of a method, which builds the objective that trains a student in place."""

    reads_trajectories: ClassVar[bool] = False
    """Whether it is built with trajectories of the teacher, and not with the teacher."""
    student: ClassVar[Literal["consistency", "ddim"]] = "consistency"
    """What it trains: a consistency model, whose noise levels are searched, or a model of DDIM steps, given ones."""

    @property
    def follows_teacher(self) -> bool:
        """Whether the student learns what the teacher does, beyond its starting weights: guidance reaches it then."""
        return True

    @property
    def lowest_level(self) -> float:
        """The noise level below which the student is not trained to the end; 0: none."""
        return 0.0

    @abstractmethod
    def build(self, student: Any, source: Any, /) -> "Objective":  # noqa: ANN401 - each method names the types it takes
        """The objective that trains `student` in place; `source`: the teacher, or trajectories of it."""
