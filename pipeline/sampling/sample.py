"""Images for people: in Python, or as PNG files with a grid, or one .npz."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.images import Generated, grid
from fewstep.files import staged_folder
from fewstep.pipeline.sampling.grammar import in_steps
from fewstep.pipeline.sampling.models import student_sampler
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.students.interfaces import Student
from fewstep.students.load import load_student, student_folder


def sample(student: Student, num: int, steps: int = 1, seed: int = 0, labels: Sequence[int] | None = None) -> Tensor:
    """`num` images of a student, uint8 [num, C, H, W].

    Image i depends on (weights, steps, seed, i) and its class alone: `labels` in turn, by default all classes. `seed`
    is below 4096. UserError for steps that the student does not have, for labels out of range, and for any where it is
    unconditional.
    """
    classes = student.space.num_classes
    if labels is not None and classes is None:
        raise UserError("labels", list(labels), "this student is unconditional: leave labels out")
    if labels is not None and classes is not None and not (labels and all(0 <= label < classes for label in labels)):
        raise UserError("labels", list(labels), f"give one or more of this student's classes, 0 to {classes - 1}")
    if num < 1:
        raise UserError("num", num, "must be 1 or more")
    return Generated(student_sampler(student, steps), seed, num, batch_size=256, labels=labels).images(0, num)


def sample_to_folder(
    run: Path,
    num: int,
    steps: int,
    seed: int,
    labels: Sequence[int] | None,
    out: Path,
    form: str,
    student: str | None = None,
) -> None:
    """Write images of a run's student into `out`: 00000.png ... and grid.png, or samples.npz (`arr_0`, NHWC).

    `run` is a run's folder, or a student's own; `student` names one where the run has several. `out` must be new
    or empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("--out", str(out), "exists and is not an empty folder; give a new one")
    folder = student_folder(run, student)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with raising_signals(), staged_folder(out) as stage:
        images = sample(load_student(folder, device), num, steps, seed, labels)
        if form == "npz":
            np.savez(stage / "samples.npz", images.permute(0, 2, 3, 1).numpy())
        else:
            for index, image in enumerate(images):
                grid(image[None], columns=1).save(stage / f"{index:05d}.png")
            picture = grid(images, columns=int(np.ceil(num**0.5)), padding=1)
            factor = max(1, 800 // max(picture.size))  # small images enlarged
            picture.resize((picture.width * factor, picture.height * factor), resample=0).save(stage / "grid.png")
    say(f"{num} images, {in_steps(steps)}, seed {seed}: {out}")
