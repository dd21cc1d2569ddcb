"""The figures of methods side by side: quality against cost while training, and where the trainings ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.eval.report.plots import COLOURS, MUTED, drawing, log_ticks, log_y, svg

_COLOURS = [colour for name, colour in COLOURS.items() if name.startswith("method")]
_DASHES = ("-", "--", ":", "-.")


def style(index: int) -> dict[str, Any]:
    """Colour and line of the method at `index` of the configuration; they repeat after ten."""
    return {"color": _COLOURS[index % len(_COLOURS)], "ls": _DASHES[index // len(_COLOURS) % len(_DASHES)]}


def quality_while_training(curves: Mapping[str, Sequence[np.ndarray]]) -> str:
    """KID against thousand forward evaluations as an <svg> element.

    curves: by label, an [N, 2] a training; drawn faint, and their mean bold over the points that all have.
    """
    with drawing(8.6, 4.4) as figure:
        axes, lowest = figure.add_subplot(), min(curve[:, 1].min() for each in curves.values() for curve in each)
        for index, (label, trainings) in enumerate(curves.items()):
            for curve in trainings:
                axes.plot(*curve.T, lw=0.8, alpha=0.35, **style(index))
            shared = min(map(len, trainings))
            mean = np.mean([curve[:shared] for curve in trainings], axis=0)
            axes.plot(*mean.T, lw=1.8, marker="o", ms=3, label=label, **style(index))
        if lowest > 0:
            log_y(axes)
        axes.grid(axis="y", which="major")
        axes.set_xlim(left=0)
        axes.set_xlabel("thousand forward evaluations spent")
        axes.set_ylabel("KID of one-step images, lower is better")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
        return svg(figure)


@dataclass(frozen=True)
class Ends:
    """Where the trainings of a method ended at a number of steps; sd None: there is one training."""

    label: str
    index: int
    values: Sequence[float]
    mean: float
    sd: float | None


def ends(panels: Mapping[str, Sequence[Ends]], metric: str, best: float | None) -> str:
    """The metric of each method as an <svg> element, the best above: a panel for each number of steps.

    Faint dots are trainings, the bold one their mean with its standard deviation. best: the teacher's, as a line.
    """
    most = max(map(len, panels.values()))
    with drawing(8.6, 1.3 + 0.32 * most) as figure:
        for column, (title, methods) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), column + 1)
            ordered = sorted(methods, key=lambda each: -each.mean)
            for y, each in enumerate(ordered):
                colour = style(each.index)["color"]
                axes.plot(each.values, [y] * len(each.values), "o", ms=4, color=colour, alpha=0.35, mec="none")
                bar = {"lw": 1.4, "capsize": 3, "ms": 7, "mec": "none"}
                axes.errorbar(each.mean, y, xerr=each.sd, fmt="o", color=colour, **bar)
            values = [value for each in methods for value in each.values] + ([] if best is None else [best])
            if 0 < 6 * min(values) < max(values):
                axes.set_xscale("log")
                log_ticks(axes.xaxis)
            if best is not None:
                axes.axvline(best, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            axes.set_yticks(range(len(ordered)), [each.label for each in ordered])
            axes.set_ylim(-0.6, len(ordered) - 0.4)
            axes.grid(axis="x", which="major")
            axes.set_title(title, loc="left", size=10, weight="bold")
            axes.set_xlabel(f"{metric}, lower is better")
        return svg(figure)
