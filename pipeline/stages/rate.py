"""`fewstep rate RUN`: the page for people, from a finished run's models and data."""

from pathlib import Path

import torch

from fewstep.errors import UserError
from fewstep.eval.images import Generated
from fewstep.eval.report.rating import rating_page
from fewstep.files import write_bytes
from fewstep.pipeline.config.reading import kept_config
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.sampling.models import student_sampler, teacher_sampler
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.stages.teacher import teacher_of
from fewstep.pipeline.training.processes import join
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.students.load import load_student, student_folder

BATCH = 64


def write_rating_page(run: Path, student: str | None, *, pairs: int, steps: int, seed: int, out: Path) -> None:
    """Write the page: `pairs` of the student against its teacher (Heun 18), as many against real images.

    `student` is the name of one, None where there is one only. The real images are of the split that quality is
    measured against. UserError: the run has no student or teacher yet; its data cannot be read; there are fewer real
    images than pairs.
    """
    config = kept_config(run)
    device = join()
    with raising_signals():
        few = student_sampler(load_student(student_folder(run, student), device), steps)
        teacher = teacher_sampler(teacher_of(RunContext(config, run)), "heun", 18)
        real = load_data(config.data, config.data.reference_split or config.data.split).images
        if len(real) < pairs:
            raise UserError("--pairs", pairs, f"there are only {len(real)} real images")
        picked = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:pairs]
        say(f"rate: {2 * pairs} images of the student at {steps} steps, {pairs} of its teacher (Heun, 18 steps)")
        made = Generated(few, seed, 2 * pairs, BATCH).images(0, 2 * pairs)
        rivals = {"teacher": Generated(teacher, seed, pairs, BATCH).images(0, pairs), "real": real[picked]}
        write_bytes(out, rating_page(config.name, made, rivals, seed).encode())
    say("open the page in a browser, answer with the arrow keys, and download the answers at the end; then:")
    say("fewstep rate --collect rating-*.json")
    say(str(out))
