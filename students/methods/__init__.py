"""The methods of distillation: each a frozen config and what it builds, in one file. `Method` is the list of them.

Nothing here imports torch before `build` is called, so that the command line's help stays fast.
"""

from typing import Annotated

from pydantic import Field

from fewstep.students.methods.cd import CD
from fewstep.students.methods.cmt import CMT
from fewstep.students.methods.dmd import DMD
from fewstep.students.methods.ect import ECT
from fewstep.students.methods.scm import SCM

Method = Annotated[CD | CMT | DMD | ECT | SCM, Field(discriminator="name")]
