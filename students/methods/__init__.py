"""The methods of distillation: each a frozen config and what it builds, in one file. `Method` is the list of them.

Nothing here imports torch before `build` is called, so that the command line's help stays fast.
"""

from typing import Annotated, get_args

from pydantic import Field

from fewstep.students.methods.cd import CD
from fewstep.students.methods.cmt import CMT
from fewstep.students.methods.ct import CT
from fewstep.students.methods.dmd import DMD
from fewstep.students.methods.ect import ECT
from fewstep.students.methods.ict import ICT
from fewstep.students.methods.lcm import LCM
from fewstep.students.methods.pd import PD
from fewstep.students.methods.scm import SCM
from fewstep.students.methods.tcm import TCM

Method = Annotated[CD | CMT | CT | DMD | ECT | ICT | LCM | PD | SCM | TCM, Field(discriminator="name")]

METHODS = {kind.model_fields["name"].default: kind for kind in get_args(get_args(Method)[0])}
"""By name."""
