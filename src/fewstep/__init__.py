"""fewstep: distil a diffusion teacher into a consistency model that samples in one or a few network evaluations.

>>> import fewstep
>>> student = fewstep.load_student("runs/digits")
>>> images = fewstep.sample(student, num=16, steps=2, seed=0)      # uint8 [16, 1, 8, 8]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.pipeline.sampling.sample import sample
    from fewstep.pipeline.stages.run import run
    from fewstep.students.load import load_student
    from fewstep.teachers.load import load_teacher

__version__ = "0.1.0"
__all__ = ["__version__", "load_student", "load_teacher", "run", "sample"]

_HOME = {
    "load_student": "fewstep.students.load",
    "load_teacher": "fewstep.teachers.load",
    "run": "fewstep.pipeline.stages.run",
    "sample": "fewstep.pipeline.sampling.sample",
}


def __getattr__(name: str) -> Any:
    """Import the public functions on first use: `import fewstep` and `fewstep --help` load no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
