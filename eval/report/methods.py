"""Methods side by side: what each costs and how good it is, as mean and spread over its trainings.

Two kinds of luck: the seed blocks of sampling are averaged inside each training, and what ± shows is the standard
deviation over trainings. Only means over trainings are compared in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import ttest_ind

from fewstep.eval.report.published import PUBLISHED
from fewstep.eval.report.tables import (
    NONE,
    Results,
    Sampler,
    best_teacher,
    counted,
    duration,
    mean,
    number,
    of_kind,
    over_trainings,
    share,
    short_label,
    spread,
    subject,
    table_markdown,
)

SIGNIFICANT = 0.05
Training = dict[str, Any]
"""An entry of results.json's `trainings`."""


@dataclass(frozen=True)
class Method:
    """A student with all of its trainings; rows: by number of steps, the sampler of the first one."""

    name: str
    trainings: Sequence[Training]
    rows: dict[int, Sampler]

    @property
    def label(self) -> str:
        """The student's name, and its method's where that is another."""
        method = self.trainings[0]["method"]
        return self.name if self.name == method else f"{self.name} ({method})"


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """The section of a report: a table, what can be said of it, and where the published numbers are from."""

    columns: Sequence[str]
    rows: Sequence[tuple[dict[str, str], Sequence[str]]]
    """Each {"kind": "student" or "teacher"} and its cells."""
    claims: Sequence[str]
    notes: Sequence[str]

    @property
    def markdown(self) -> str:
        """The table, as results.md and a README show it."""
        return table_markdown(self.columns, [cells for _, cells in self.rows])


def side_by_side(results: Results) -> SideBySide | None:
    """The section, None where there is one training only, or results from before there were several."""
    if len(results.get("trainings", ())) < 2:
        return None
    found, metric = methods(results), results["benchmark"]["metric_name"]
    steps = sorted({step for method in found for step in method.rows})
    at = [counted(step, "step") for step in steps]
    columns = [
        *("Method", "Thousand forward evaluations", "Training time", "Reads of the teacher"),
        *(f"{name}, {each} ↓" for name in (metric, "KID") for each in at),
        *(f"{name}, {at[0]}{arrow}" for name, arrow in (("Precision", " ↑"), ("Recall", " ↑"), ("Near-copies", ""))),
        "Others’ CIFAR-10 FID, 1 / 2 steps",
    ]
    rows = [({"kind": "student"}, _cells(results, method, steps)) for method in found]
    rows += [({"kind": "teacher"}, cells) for cells in _references(results, steps)]
    lines = [line for step in steps for line in claims(results, found, step)]
    return SideBySide(columns=columns, rows=rows, claims=lines, notes=_notes(found))


def methods(results: Results) -> list[Method]:
    """The students in the order of the configuration."""
    students = list(dict.fromkeys(training["student"] for training in results["trainings"]))
    rows = [(subject(each), int(each["name"].rpartition("@")[2]), each) for each in of_kind(results, "student")]
    return [
        Method(
            name,
            [training for training in results["trainings"] if training["student"] == name],
            {steps: row for student, steps, row in rows if student == name},
        )
        for name in students
    ]


def _cells(results: Results, method: Method, steps: Sequence[int]) -> list[str]:
    first, rows = method.trainings[0], method.rows

    def over(metric: str, step: int) -> dict[str, Any] | None:
        return over_trainings(results, rows[step], metric) if step in rows else None

    copies = over("copies", steps[0])
    seconds = float(np.mean([training["seconds"] for training in method.trainings]))
    return [
        method.label,
        NONE if first["thousand_evaluations"] is None else number(first["thousand_evaluations"]),
        duration(seconds),
        _reads(first),
        *(spread(over(metric, step)) for metric in ("fd", "kid") for step in steps),
        *(spread(over(metric, steps[0])) for metric in ("precision", "recall")),
        NONE if copies is None else share(copies["mean"]),
        ", ".join(map(str, PUBLISHED.get(first["method"], ()))) or NONE,
    ]


def _reads(training: Training) -> str:
    """What the distillation takes from the teacher besides the weights it starts from."""
    evaluations = training["cost"].get("teacher", 0)
    parts = ["trajectories"] if training["trajectories"] else []
    shown = number(evaluations) if evaluations % 1 else str(evaluations)
    parts += [f"{shown} evaluation{'s' if evaluations > 1 else ''} an image"] if evaluations else []
    return ", ".join(parts) or "starting weights"


def _references(results: Results, steps: Sequence[int]) -> list[list[str]]:
    """The teacher at its best, and by DDIM with as many evaluations as the students; means over seed blocks."""
    samplers, found = {each["name"]: each for each in results["samplers"]}, []
    best, ddim = best_teacher(results), [samplers.get(f"teacher@ddim:{step}") for step in steps]
    if best is not None:
        label = f"Teacher’s best: {short_label(best)}, {counted(best['nfe'], 'evaluation')}"
        found.append((label, [best] * len(steps)))
    if any(each is not None and each["quality"] for each in ddim):
        found.append(("Teacher, DDIM, with as many evaluations", ddim))
    return [[label, NONE, NONE, NONE, *_values(rows), NONE] for label, rows in found]


def _values(rows: Sequence[Sampler | None]) -> list[str]:
    def value(row: Sampler | None, metric: str) -> str:
        found = None if row is None else mean(row, metric)
        return NONE if found is None else share(found) if metric == "copies" else number(found)

    first = [value(rows[0], metric) for metric in ("precision", "recall", "copies")]
    return [value(row, metric) for metric in ("fd", "kid") for row in rows] + first


def claims(results: Results, found: Sequence[Method], steps: int) -> list[str]:
    """What the trainings say about the methods at a number of steps: the best, and whom it cannot be told from.

    By Welch's t-test over trainings, two-sided; without several trainings of two methods, nothing.
    """
    judged = [
        (method.label, over)
        for method in found
        if steps in method.rows and (over := over_trainings(results, method.rows[steps], "fd")) and over["sd"]
    ]
    if len(judged) < 2:
        return []
    judged.sort(key=lambda pair: pair[1]["mean"])
    (best, first), *others = judged
    tests: list[tuple[str, dict[str, Any], float]] = []
    for label, over in others:
        test: Any = ttest_ind(first["values"], over["values"], equal_var=False)
        tests.append((label, over, float(test.pvalue)))
    worse = [f"{label} ({spread(over)}, p = {number(p, 2)})" for label, over, p in tests if p < SIGNIFICANT]
    near = [f"{label} ({spread(over)}, p = {number(p, 2)})" for label, over, p in tests if p >= SIGNIFICANT]
    metric, count = results["benchmark"]["metric_name"], len(first["values"])
    text = f"{counted(steps, 'step')}: {best} has the lowest {metric}, {spread(first)} over {count} trainings"
    text += f". It is better than {', '.join(worse)}" if worse else ""
    return [text + (f". It cannot be told from {', '.join(near)}" if near else "") + "."]


def _notes(found: Sequence[Method]) -> list[str]:
    """How the table is to be read, and the sources of what others report."""
    counts = {len(method.trainings) for method in found}
    lines = [
        f"± is the standard deviation over {' or '.join(map(str, sorted(counts)))} trainings, each from other "
        "randomness and with the images in another order; the seed blocks of sampling are averaged inside."
        if max(counts) > 1
        else "Each was trained once, so that nothing here says that one method is better than another.",
        "Forward evaluations are those of a training, where one with its gradient counts as three and a "
        "Jacobian-vector product as two; the conversion from the teacher, which is the same for all, is not in it.",
        "The teacher’s rows are means over seed blocks.",
    ]
    shown = [method.trainings[0]["method"] for method in found]
    sources = [f"{name} {each}: {each.source}" for name in dict.fromkeys(shown) for each in PUBLISHED.get(name, ())]
    if sources:
        lines.append(
            "The last column holds what others report of other networks, data and budgets, and compares with nothing "
            f"else here. {'; '.join(sources)}."
        )
    return lines


def training_curves(results: Results, logs: dict[str, list[dict[str, Any]]]) -> dict[str, list[np.ndarray]]:
    """By label of a method, for each training: thousand forward evaluations spent and KID then [N, 2].

    Of the average that was saved. Without trainings that were measured on the way and whose cost is known.
    """
    curves: dict[str, list[np.ndarray]] = {}
    for method in methods(results):
        for training in method.trainings:
            records, cost = logs[training["stage"]], training["cost"]
            key = f"kid_{training['average']}"
            spent = [
                (record["kimg"] * cost["forward_equivalents"] + training["trajectories"] / 1000, record[key])
                for record in records
                if key in record and "forward_equivalents" in cost
            ]
            if len(spent) > 1:
                curves.setdefault(method.label, []).append(np.array(spent))
    return curves
