"""A page on which a person says which of two images looks more real, not knowing where they come from; and its answers.

Two questions are mixed: student against teacher (from the same noise), and student against real. The answer to the
first is a preference rate, to the second a fooling rate; half is what equally good images get.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.images import grid
from fewstep.eval.report.images import png
from fewstep.eval.report.page import page_template
from fewstep.files import read_json, sha256_json

TITLES = {
    "teacher": "the student preferred to its teacher",
    "real": "the student taken for real against real images",
}
RIVALS = tuple(TITLES)
CONFIDENCE = 0.95
ANSWERS = {"format": int, "page": str, "rater": str, "answers": [{"rival": str, "chose": str}]}


@dataclass(frozen=True)
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

    student: uint8 [N, C, H, W], one for each of rivals: {"teacher": uint8 [K, C, H, W], "real": [N - K, C, H, W]}.
    Order and sides are drawn by `seed`.
    """
    generator, pairs = torch.Generator().manual_seed(seed), []
    against = [(rival, image) for rival in RIVALS for image in rivals[rival]]
    for ours, (rival, image) in zip(student, against, strict=True):
        sides = [("student", ours), (rival, image)]
        flip = bool(torch.randint(2, (1,), generator=generator))
        left, right = sides[::-1] if flip else sides
        pairs.append({"rival": rival, "left": left[0], "images": [_png(left[1]), _png(right[1])]})
    pairs = [pairs[index] for index in torch.randperm(len(pairs), generator=generator)]
    page, side = sha256_json(pairs), student.shape[-1]
    shown = side * max(1, 320 // side)
    return page_template("rate.html").render(name=name, page=page, pairs=pairs, shown=shown)


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
    pairs, rates = [answer for value in answers.values() for answer in value["answers"]], []
    for rival in RIVALS:
        chosen = [answer["chose"] == "student" for answer in pairs if answer["rival"] == rival]
        if chosen:
            interval = binomtest(sum(chosen), len(chosen)).proportion_ci(CONFIDENCE, method="wilson")
            rates.append(Rate(rival, sum(chosen), len(chosen), len(answers), float(interval.low), float(interval.high)))
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
    return base64.b64encode(png(grid(image[None], columns=1))).decode()


def _read_answers(path: Path) -> dict[str, Any]:
    value = read_json(path, ANSWERS)
    sound = all(a["rival"] in RIVALS and a["chose"] in ("student", a["rival"]) for a in value["answers"])
    if not sound or value["format"] != 1:
        raise UserError(path, None, "holds no answers of a fewstep rating page")
    return value
