"""What got better or worse between two results of one protocol, with the significance that the seed blocks give."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import ttest_ind, ttest_rel

from fewstep.errors import UserError
from fewstep.eval.quality.protocol import Protocol, check_same, slug
from fewstep.eval.report.tables import number
from fewstep.files import read_json, read_sealed

SIGNIFICANT = 0.05
TITLES = {  # that of "fd" is the metric's own
    "fd": "{metric}",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "Inception Score",
    "copies": "near-copies",
    "copies_in_features": "near-copies in features",
}
MORE_IS_BETTER = ("precision", "recall", "inception_score")
RESULTS: dict[str, Any] = {  # what a comparison needs of results.json
    "benchmark": {
        "protocol": {"reference": {}, "extractor": {}, "images": int, "encoding": str, "hash": str},
        "metric_name": str,
    },
    "samplers": [
        {"name": str, "quality": (None, {"seeds": [int], "metrics": {str: {"mean": float, "values": [float]}}})}
    ],
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of one sampler, before and now.

    p: two-sided, of Student's t-test over the seed blocks, paired where both results have the same seeds (the
    same seed is the same noise), else Welch's; None where fewer than two blocks leave nothing to test with.
    """

    sampler: str
    metric: str
    before: float
    now: float
    p: float | None

    @property
    def worse_by(self) -> float:
        """The change for the worse as a share of the earlier value's size; negative: it got better."""
        difference = (self.now - self.before) * (-1 if self.metric in MORE_IS_BETTER else 1)
        return difference / abs(self.before) if self.before else (float("inf") if difference > 0 else -difference)

    @property
    def verdict(self) -> str:
        """Better, worse, or why neither can be said."""
        if self.now == self.before:
            return "the same"
        word = "worse" if self.worse_by > 0 else "better"
        if self.p is None:
            return f"{word} (one seed block: no significance)"
        return word if self.p < SIGNIFICANT else f"{word}, within the noise"

    def regressed(self, bound: float) -> bool:
        """Whether the Frechet distance is worse by more than `bound`, and not by chance as far as can be tested."""
        return self.metric == "fd" and self.worse_by > bound and (self.p is None or self.p < SIGNIFICANT)


def read_results(path: Path) -> dict[str, Any]:
    """A results.json; UserError where the file is missing or is no such file."""
    if not path.is_file():
        raise UserError("--against", str(path), "no such file; give the report/results.json of an earlier run")
    return read_json(path, RESULTS)


def read_measured(folder: Path) -> dict[str, Any]:
    """What a benchmark left in `folder`, in the form of results.json."""
    value = read_json(folder / "benchmark.json", RESULTS["benchmark"] | {"sampler_order": [str]})
    paths = [folder / "samplers" / f"{slug(name)}.json" for name in value["sampler_order"]]
    samplers = [read_sealed(path, RESULTS["samplers"][0]) for path in paths]
    return {"benchmark": value, "samplers": samplers}


def compare(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """The changes of every sampler that both results judged, in the order of `now`.

    UserError: the protocols differ (which field), or the two have no judged sampler in common.
    """
    check_same(*(Protocol.from_json(results["benchmark"]["protocol"]) for results in (before, now)))
    earlier = {sampler["name"]: sampler["quality"] for sampler in before["samplers"] if sampler["quality"]}
    changes = []
    for sampler in now["samplers"]:
        quality, old = sampler["quality"], earlier.get(sampler["name"])
        if not quality or not old:
            continue
        for metric in (name for name in TITLES if name in quality["metrics"] and name in old["metrics"]):
            a, b = old["metrics"][metric], quality["metrics"][metric]
            paired = old["seeds"] == quality["seeds"] and len(a["values"]) == len(b["values"])
            p = _significance(a["values"], b["values"], paired=paired)
            changes.append(Change(sampler=sampler["name"], metric=metric, before=a["mean"], now=b["mean"], p=p))
    if not changes:
        remedy = f"judges none of {', '.join(sampler['name'] for sampler in now['samplers'])}: nothing to compare"
        raise UserError("--against", None, remedy)
    return changes


def _significance(before: Sequence[float], now: Sequence[float], *, paired: bool) -> float | None:
    if min(len(before), len(now)) < 2:
        return None
    if paired:
        differences = [b - a for a, b in zip(before, now, strict=True)]
        if len(set(differences)) == 1:  # no spread at all: equal, or certain
            return 1.0 if differences[0] == 0 else 0.0
    elif len(set(before)) == len(set(now)) == 1:
        return 1.0 if before[0] == now[0] else 0.0
    with warnings.catch_warnings(category=RuntimeWarning, action="ignore"):  # of a side that has no spread
        test: Any = ttest_rel(now, before) if paired else ttest_ind(now, before, equal_var=False)
    return float(test.pvalue)


def comparison_text(changes: Sequence[Change], metric_name: str, bound: float) -> list[str]:
    """The comparison as lines of a table for a terminal, and a last line with what regressed."""
    rows = [("sampler", "metric", "before", "now", "p", "")]
    for change in changes:
        p = "-" if change.p is None else number(change.p, 2)
        title = TITLES[change.metric].format(metric=metric_name)
        rows.append((change.sampler, title, number(change.before), number(change.now), p, change.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    worst = [f"{each.sampler} by {100 * each.worse_by:.1f} %" for each in changes if each.regressed(bound)]
    found = f"regression beyond {100 * bound:g} % in {metric_name}"
    return [*lines, f"{found}: {', '.join(worst)}" if worst else f"no {found}"]
