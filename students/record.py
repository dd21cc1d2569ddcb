"""fewstep.json in a student's folder: the noise levels of each number of steps, and where they are not the default's.

"levels" is {steps: noise levels, descending}; "timesteps" is {steps: what the stock pipeline's `timesteps=` takes} for
the numbers of steps whose levels were chosen in place of those of its default call.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fewstep.errors import UserError
from fewstep.files import read_json, write_json
from fewstep.students.consistency import ConsistencyModel

RECORD = "fewstep.json"
FORM = {"format": int, "levels": {str: [float]}, "timesteps": {str: [int]}}


def write_record(model: ConsistencyModel, folder: Path) -> None:
    """Write the record of a model's grid."""
    known = [steps for steps in (1, 2, 4, 8) if steps < model.grid.num_train_timesteps]
    levels = {str(steps): model.step_sigmas(steps) for steps in known}
    timesteps = {str(steps): list(points) for steps, points in model.grid.chosen.items()}
    write_json(folder / RECORD, {"format": 1, "levels": levels, "timesteps": timesteps})


def read_chosen(folder: Path, model: ConsistencyModel) -> dict[int, Sequence[int]]:
    """The chosen points of the grid of `model`, whose other numbers are those of the folder's scheduler.

    There are none without a record. UserError: it is damaged, or of another scheduler.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    value = read_json(path, FORM)
    if value["format"] != 1:
        raise UserError(f"{path}: format", value["format"], "is of another version of fewstep: only 1 is read")
    for steps, points in value["timesteps"].items():
        descends = all(one > two for one, two in pairwise([model.grid.num_train_timesteps - 1, *points]))
        if str(len(points)) != steps or not descends or points[-1:] != [0]:
            remedy = f"must be {steps} points of the scheduler's grid that descend to 0: remove the file"
            raise UserError(f"{path}: timesteps.{steps}", points, remedy)
        given, levels = value["levels"].get(steps), model.grid.at(points, model.sigma_min, model.sigma_max)
        if given is None or len(given) != len(levels) or not all(map(_close, given, levels)):
            remedy = "are not the noise levels of its timesteps on the scheduler's grid: remove the file"
            raise UserError(f"{path}: levels.{steps}", given, remedy)
    return {int(steps): points for steps, points in value["timesteps"].items()}


def _close(one: float, two: float) -> bool:
    return math.isclose(one, two, rel_tol=1e-4)
