"""SUBJECT@SOLVER:STEPS or SUBJECT@STEPS: the name of a sampler, in `eval.samplers` and on the command line.

SUBJECT is teacher, a student's name, or on the command line a folder, a file or a hub id. Nothing here imports torch.
"""

import re
from dataclasses import dataclass

SOLVERS = ("ddpm", "ddim", "dpmsolver++", "unipc", "heun")
"""Of a teacher."""
STEPS = (1, 2, 4, 8)
"""Of a student."""
ALL = 0
"""Steps of a sampler that makes as many as its teacher has timesteps; written `all`."""
_NAME = re.compile(r"(?P<subject>.+)@(?:(?P<solver>[a-z+]+):)?(?P<steps>[1-9]\d{0,5}|all)", re.DOTALL)


@dataclass(frozen=True)
class SamplerName:
    """The parts of "teacher@ddim:50", "teacher@ddpm:all", "student@2", "runs/digits/teacher@heun:18"."""

    subject: str
    solver: str | None
    steps: int

    @property
    def kind(self) -> str:
        """Of a run's own samplers: "teacher" or "student"."""
        return "teacher" if self.subject == "teacher" else "student"

    def __str__(self) -> str:
        steps = self.steps or "all"
        return f"{self.subject}@{self.solver}:{steps}" if self.solver else f"{self.subject}@{steps}"


def in_steps(number: int) -> str:
    """1 step, 2 steps."""
    return f"{number} step{'s' if number > 1 else ''}"


def parse(text: str) -> SamplerName | None:
    """The parts of a sampler's name, None where it is none."""
    found = _NAME.fullmatch(text)
    if found is None or (found["steps"] == "all" and found["solver"] != "ddpm"):
        return None
    return SamplerName(found["subject"], found["solver"], ALL if found["steps"] == "all" else int(found["steps"]))


def parse_own(text: str) -> SamplerName:
    """The parts of a name in `eval.samplers`: the teacher under one of SOLVERS, a student at one of STEPS.

    ValueError: it is neither.
    """
    name = parse(text)
    if name is None or not (name.solver in SOLVERS if name.kind == "teacher" else name.solver is None):
        raise ValueError(text)
    if name.kind == "student" and name.steps not in STEPS:
        raise ValueError(text)
    return name
