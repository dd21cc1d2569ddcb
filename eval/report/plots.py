"""The report's figures as inline SVG: text stays text, colours are CSS variables, bytes are reproducible."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# A colour that stands for a CSS variable: the page decides what it looks like in light and in dark.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
COLOURS = {"teacher": "#040404", "student": "#050505"}
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    COLOURS["teacher"]: "teacher",
    COLOURS["student"]: "student",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep",
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
}


@dataclass(frozen=True)
class Point:
    """A sampler in the plane of cost and quality. ms: milliseconds per image; sd: None for one seed block."""

    label: str
    kind: str
    ms: float
    fd: float
    sd: float | None


def quality_against_time(points: Sequence[Point], metric: str, floor: float | None) -> str:
    """The Pareto plot as an <svg> element: the metric against milliseconds per image (log axis)."""
    with _figure(8.6, 4.9) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        _y_axis(axes, points, floor)
        front = pareto_front(points)
        axes.plot([p.ms for p in front], [p.fd for p in front], color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        for point in points:
            colour = COLOURS.get(point.kind, INK)
            if point.sd is not None:
                axes.errorbar(point.ms, point.fd, point.sd, color=colour, lw=1.2, capsize=3, zorder=2)
            marker = "o" if point.kind == "student" else "s"
            axes.plot(point.ms, point.fd, marker, color=colour, ms=7, mec="none", zorder=3)
        low, high = min(p.ms for p in points), max(p.ms for p in points)
        axes.set_xlim(low / 2.2, high * 2.2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="both", which="major")
        axes.set_axisbelow(True)
        axes.set_xlabel("milliseconds per image, at the best batch size (log)")
        axes.set_ylabel(f"{metric}, lower is better")
        fixed = []
        if floor is not None:
            axes.axhline(floor, color=MUTED, lw=0.8, ls=":", zorder=1)
            fixed.append(
                axes.annotate(
                    "floor: real images against real images",
                    (0.995, floor),
                    xycoords=axes.get_yaxis_transform(),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="right",
                    color=MUTED,
                    size=8,
                )
            )
        _place_labels(figure, axes, points, fixed)
        return _svg(figure)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both time and quality, by rising time."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, p.fd)):
        if not front or point.fd < front[-1].fd:
            front.append(point)
    return front


def training_curves(logs: dict[str, list[dict[str, Any]]]) -> str:
    """Loss against thousands of images as an <svg> element, a panel a stage; a running mean is drawn bold.

    Where weight averages were measured (`kid_5` in the records: KID of half-life 5 kimg), a panel beside it shows that.
    """
    panels = [(stage, kind) for stage in logs for kind in ("loss", "KID") if kind == "loss" or _kids(logs[stage])]
    with _figure(8.6, 3.2) as figure:
        for column, (stage, kind) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), column + 1)
            colour = COLOURS["teacher" if stage == "teacher" else "student"]
            if kind == "KID":
                _quality_curves(axes, logs[stage], colour)
            else:
                kimg, loss = _series(logs[stage], "loss")
                axes.plot(*envelope(kimg, loss), color=colour, lw=0.7, alpha=0.35)
                axes.plot(*running_mean(kimg, loss), color=colour, lw=1.8)
                axes.set_yscale("log")
                axes.set_ylabel("training loss (log)" if column == 0 else "")
            if axes.get_yscale() == "log":
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.grid(axis="y", which="major")
            axes.set_axisbelow(True)
            axes.set_title(stage.capitalize(), loc="left", color=colour, size=10, weight="bold")
            axes.set_xlabel("thousands of images seen")
        return _svg(figure)


def _quality_curves(axes: Axes, records: Sequence[dict[str, Any]], colour: str) -> None:
    """KID of one-step images against thousands of images, a line an average; logarithmic where all are positive."""
    curves = {name: _series(records, name) for name in _kids(records)}
    for (name, (kimg, kid)), dashes in zip(curves.items(), cycle(("-", "--", ":", "-.")), strict=False):
        axes.plot(kimg, kid, dashes, color=colour, marker="o", ms=3, lw=1.4, label=f"{name.removeprefix('kid_')} kimg")
    axes.set_yscale("log" if min(kid.min() for _, kid in curves.values()) > 0 else "linear")
    axes.set_ylabel("KID, one step")
    axes.legend(title="half-life", frameon=False, fontsize=8, title_fontsize=8)


def _kids(records: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of measured averages, by rising half-life."""
    found = {key for record in records for key in record if key.startswith("kid_")}
    return sorted(found, key=lambda key: float(key.removeprefix("kid_")))


def _series(records: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """kimg and the values [N] of the records that have `name`."""
    found = [(record["kimg"], record[name]) for record in records if name in record]
    kimg, values = np.array(found, dtype=float).reshape(-1, 2).T
    return kimg, values


def envelope(x: np.ndarray, y: np.ndarray, bins: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """[N] values as at most 2*bins points that keep each bin's lowest and highest, in their order."""
    if len(x) <= 2 * bins:
        return x, y
    keep: list[int] = []
    for part in np.array_split(np.arange(len(x)), bins):
        keep += sorted({int(part[y[part].argmin()]), int(part[y[part].argmax()])})
    return x[keep], y[keep]


def running_mean(x: np.ndarray, y: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """[N] values as at most `points` means over a centred window of a twentieth of them, cut at the ends."""
    reach = max(len(y) // 40, 1)
    totals = np.concatenate([[0.0], np.cumsum(y)])
    centre = np.unique(np.linspace(0, len(y) - 1, min(points, len(y))).round().astype(int))
    start, stop = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, len(y))
    return x[centre], (totals[stop] - totals[start]) / (stop - start)


def _y_axis(axes: Axes, points: Sequence[Point], floor: float | None) -> None:
    """From zero where the values are of one size; logarithmic where a bad sampler would flatten the rest."""
    values = [point.fd for point in points]
    if min(values) > 0 and max(values) > 8 * min(values):
        axes.set_yscale("log")
        axes.set_ylim(min([*values, floor if floor and floor > 0 else min(values)]) / 1.4, max(values) * 1.4)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(min(0.0, *values), 1.15 * max(p.fd + (p.sd or 0) for p in points))


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point], fixed: Sequence[Annotation]) -> None:
    """Write each point's label at the nearest spot that covers no other label, marker or line."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer, frame = canvas.get_renderer(), axes.get_window_extent().get_points().ravel()
    boxes = [text.get_window_extent(renderer).get_points().ravel() for text in fixed]
    reach = 5 * figure.dpi / 72
    for point in points:
        sd = point.sd or 0.0
        (x, low), (_, high) = axes.transData.transform([(point.ms, point.fd - sd), (point.ms, point.fd + sd)])
        boxes.append(np.array([x - reach, low - reach, x + reach, high + reach]))
    front = [axes.transData.transform((point.ms, point.fd)) for point in pareto_front(points)]
    for start, stop in pairwise(front):
        boxes += [np.array([x - 1, y - 1, x + 1, y + 1]) for x, y in np.linspace(start, stop, 40)]
    for point in points:
        candidates = []
        for spot in _spots():
            text = _label(axes, point, spot)
            box = text.get_window_extent(renderer).padded(1).get_points().ravel()
            text.remove()
            outside = _overlap(box, box[None]) - _overlap(box, frame[None])
            candidates.append((round(_overlap(box, np.stack(boxes)) + outside, 6), spot, box))
        _, spot, box = min(candidates, key=lambda candidate: candidate[0])
        _label(axes, point, spot)
        boxes.append(box)


def _label(axes: Axes, point: Point, spot: tuple[float, float, str]) -> Annotation:
    return axes.annotate(
        point.label,
        (point.ms, point.fd),
        spot[:2],
        textcoords="offset points",
        ha=spot[2],
        va="center",
        color=COLOURS.get(point.kind, INK),
        weight="bold" if point.kind == "student" else "normal",
    )


def _spots() -> Iterator[tuple[float, float, str]]:
    """Offsets in points from a marker, nearest first, with the horizontal alignment that suits each."""
    for reach in (10, 16, 24, 34, 46):
        yield reach, 0, "left"
        yield -reach, 0, "right"
        for y in (reach, -reach):
            yield 0, y + (4 if y > 0 else -4), "center"
            yield 7, y, "left"
            yield -7, y, "right"


def _overlap(box: np.ndarray, others: np.ndarray) -> float:
    """Area that a box [4] (x0, y0, x1, y1) shares with boxes [N, 4], added up."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return float((high - low).clip(0).prod(1).sum())


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of the report's style, in inches; the style holds inside the block only."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained", facecolor="none")


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element: no metadata, no ids that nothing refers to, themed colours."""
    for axes in figure.axes:
        axes.set_facecolor("none")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    return re.sub("|".join(VARIABLES), lambda match: f"var(--{VARIABLES[match[0]]})", text)
