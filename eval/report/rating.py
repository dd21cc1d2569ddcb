"""A page on which a person says which of two images looks more real, not knowing where they come from; and its answers.

Two questions are mixed: student against teacher (from the same noise), and student against real. The answer to the
first is a preference rate, to the second a fooling rate; half is what equally good images get.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
import torch
from scipy.stats import binomtest
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.images import grid
from fewstep.files import read_json

RIVALS = ("teacher", "real")
TITLES = {
    "teacher": "the student preferred to its teacher",
    "real": "the student taken for real against real images",
}
CONFIDENCE = 0.95
_LARGEST_FILE = 10_000_000  # bytes


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often raters chose the student against one rival: a share with its 95 % Wilson interval."""

    rival: str
    chosen: int
    shown: int
    raters: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """chosen / shown, 0..1."""
        return self.chosen / self.shown


def rating_page(name: str, student: Tensor, rivals: dict[str, Tensor], seed: int) -> str:
    """The page as HTML that needs no server and no network.

    student: uint8 [N, C, H, W]. rivals: {"teacher": uint8 [K, C, H, W], "real": ...}; pair k of a rival shows the
    student's image k, for "real" counted on from the last of the teacher's. Order and sides are drawn by `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs, start = [], 0
    for rival in RIVALS:
        for index, image in enumerate(rivals.get(rival, [])):
            sides = [("student", student[start + index]), (rival, image)]
            flip = bool(torch.randint(2, (1,), generator=generator))
            left, right = sides[::-1] if flip else sides
            pairs.append({"rival": rival, "left": left[0], "images": [_png(left[1]), _png(right[1])]})
        start += len(rivals.get(rival, []))
    order = torch.randperm(len(pairs), generator=generator).tolist()
    pairs = [pairs[index] for index in order]
    side = student.shape[-1]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fewstep.eval.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = sha256(json.dumps(pairs).encode()).hexdigest()
    shown = side * max(1, 320 // side)
    return environment.get_template("rate.html").render(name=name, page=page, pairs=pairs, shown=shown)


def collect(files: Sequence[Path]) -> tuple[list[Rate], list[str]]:
    """The rates of the answers in downloaded files, and remarks about answers that were not counted.

    A file given twice counts once. UserError: a file that the page did not write; answers to different pages.
    """
    answers: dict[str, dict[str, Any]] = {}
    remarks = []
    for path in files:
        value = _read_answers(path)
        if answers and value["page"] != next(iter(answers.values()))["page"]:
            raise UserError(path, None, "answers another page than the files before it: collect them apart")
        if value["rater"] in answers:
            remarks.append(f"{path}: the same rating is in an earlier file, counted once")
        answers[value["rater"]] = value
    rates = []
    for rival in RIVALS:
        chosen = [
            a["chose"] == "student" for value in answers.values() for a in value["answers"] if a["rival"] == rival
        ]
        if chosen:
            interval = binomtest(sum(chosen), len(chosen)).proportion_ci(CONFIDENCE, method="wilson")
            rates.append(
                Rate(
                    rival=rival,
                    chosen=sum(chosen),
                    shown=len(chosen),
                    raters=len(answers),
                    low=float(interval.low),
                    high=float(interval.high),
                )
            )
    if not rates:
        raise UserError(files[0], None, "holds no answers yet")
    return rates, remarks


def rates_text(rates: Sequence[Rate]) -> list[str]:
    """A line for each rate."""
    return [
        f"{TITLES[rate.rival]}: {100 * rate.share:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f}, "
        f"{100 * CONFIDENCE:.0f} % interval; {rate.shown} pairs, {rate.raters} rater{'s' if rate.raters > 1 else ''})"
        for rate in rates
    ]


def _png(image: Tensor) -> str:
    buffer = io.BytesIO()
    grid(image[None], columns=1).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _read_answers(path: Path) -> dict[str, Any]:
    if path.is_file() and path.stat().st_size > _LARGEST_FILE:
        raise UserError(path, None, "is too large for answers of a rating page")
    value = read_json(path)
    answers = value.get("answers") if isinstance(value, dict) else None
    texts = isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("page", "rater"))
    sound = isinstance(answers, list) and all(
        isinstance(a, dict) and a.get("rival") in RIVALS and a.get("chose") in ("student", a["rival"]) for a in answers
    )
    if not texts or not sound or value.get("format") != 1:
        raise UserError(path, None, "holds no answers of a fewstep rating page")
    return value
