"""The report's figures as inline SVG: text stays text, colours are CSS variables, bytes are reproducible."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

# Colours that stand for a CSS variable each: the page decides what they look like in light and in dark.
_NAMES = ("ink", "muted", "line", "teacher", "student", *(f"method-{i}" for i in range(1, 11)))
COLOURS = {name: f"#{i:02x}{i:02x}{i:02x}" for i, name in enumerate(_NAMES, 1)}
INK, MUTED, LINE, *_ = COLOURS.values()
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep",
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
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
    with drawing(8.6, 4.9) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        _y_axis(axes, points, floor)
        front = [(p.ms, p.fd) for p in pareto_front(points)]
        axes.plot(*zip(*front, strict=True), color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        for p in points:
            colour, marker = COLOURS.get(p.kind, INK), "o" if p.kind == "student" else "s"
            axes.errorbar(p.ms, p.fd, p.sd, color=colour, lw=1.2, capsize=3, fmt=marker, ms=7, mec="none", zorder=3)
        axes.set_xlim(min(p.ms for p in points) / 2.2, max(p.ms for p in points) * 2.2)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="both", which="major")
        axes.set_xlabel("milliseconds per image, at the best batch size (log)")
        axes.set_ylabel(f"{metric}, lower is better")
        fixed = []
        if floor is not None:
            axes.axhline(floor, color=MUTED, lw=0.8, ls=":", zorder=1)
            text, at = "floor: real images against real images", axes.get_yaxis_transform()
            above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right", "color": MUTED, "size": 8}
            fixed.append(axes.annotate(text, (0.995, floor), xycoords=at, **above))
        _place_labels(figure, axes, points, fixed)
        return svg(figure)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both time and quality, by rising time."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ms, p.fd)):
        if not front or point.fd < front[-1].fd:
            front.append(point)
    return front


def training_curves(logs: dict[str, list[dict[str, Any]]], *, quality: bool = True) -> str:
    """Loss against thousands of images as an <svg> element, a panel a stage; a running mean is drawn bold.

    Where weight averages were measured (`kid_5` in the records: KID of half-life 5 kimg), a panel beside it shows that,
    unless `quality` is False.
    """
    kinds = ("loss", "KID") if quality else ("loss",)
    panels = [(stage, kind) for stage in logs for kind in kinds if kind == "loss" or _kids(logs[stage])]
    with _panels([stage for stage, _ in panels], "thousands of images seen", "training loss (log)") as (figure, drawn):
        for (stage, kind), (axes, colour) in zip(panels, drawn, strict=True):
            if kind == "KID":
                _quality_curves(axes, logs[stage], colour)
            else:
                kimg, loss = _series(logs[stage], "loss")
                axes.plot(kimg, loss, color=colour, lw=0.7, alpha=0.35)
                axes.plot(kimg, running_mean(loss), color=colour, lw=1.8)
                log_y(axes)
        return svg(figure)


def losses_by_level(logs: dict[str, list[dict[str, Any]]]) -> str | None:
    """Loss against noise level as an <svg> element, a panel a stage: a line a quarter of training, from faint to bold.

    None where no log has losses by level (`loss/0.21` in the records: of the noise levels around 0.21).
    """
    panels = {stage: found for stage, records in logs.items() if (found := level_profiles(records))}
    if not panels:
        return None
    with _panels(list(panels), "noise level sigma (log)", "training loss") as (figure, drawn):
        for profiles, (axes, colour) in zip(panels.values(), drawn, strict=True):
            for index, (sigma, loss) in enumerate(profiles, 4 - len(profiles)):
                look = ((0.25, 1.2), (0.4, 1.2), (0.6, 1.4), (1.0, 2.2))[index]
                axes.plot(sigma, loss, color=colour, marker="o", ms=3, alpha=look[0], lw=look[1])
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            if min(loss.min() for _, loss in profiles) > 0:
                log_y(axes)
        return svg(figure)


@contextmanager
def _panels(stages: Sequence[str], x: str, y: str) -> Iterator[tuple[Figure, list[tuple[Axes, str]]]]:
    """A figure with a panel a stage, at most four in a line, titled and labelled; the axes and colour of each."""
    columns, panels = min(len(stages), 4), []
    lines = -(-len(stages) // columns)
    with drawing(8.6, 3.2 if lines == 1 else 2.3 * lines) as figure:
        for index, stage in enumerate(stages):
            colour = COLOURS["teacher" if stage == "teacher" else "student"]
            axes = figure.add_subplot(lines, columns, index + 1)
            axes.grid(axis="y", which="major")
            axes.set_title(stage.capitalize(), loc="left", color=colour, size=10, weight="bold")
            axes.set_xlabel(x if index + columns >= len(stages) else "")
            axes.set_ylabel(y if index % columns == 0 else "")
            panels.append((axes, colour))
        yield figure, panels


def level_profiles(records: Sequence[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The levels [L] and their mean losses [L] of each quarter of training that has any."""
    names = {key for record in records for key in record if key.startswith("loss/")}
    found, end = [], records[-1]["kimg"] if records else 0.0
    for quarter in range(4):
        first, last = end * quarter / 4, end * (quarter + 1) / 4
        part = [record for record in records if first < record["kimg"] <= last]
        means = {float(name.removeprefix("loss/")): _series(part, name)[1] for name in names}
        levels = sorted(level for level, values in means.items() if len(values))
        if levels:
            found.append((np.array(levels), np.array([means[level].mean() for level in levels])))
    return found


def _quality_curves(axes: Axes, records: Sequence[dict[str, Any]], colour: str) -> None:
    """KID of one-step images against thousands of images, a line an average; logarithmic where all are positive."""
    curves = {name: _series(records, name) for name in _kids(records)}
    for (name, (kimg, kid)), dashes in zip(curves.items(), cycle(("-", "--", ":", "-.")), strict=False):
        axes.plot(kimg, kid, dashes, color=colour, marker="o", ms=3, lw=1.4, label=f"{name.removeprefix('kid_')} kimg")
    if min(kid.min() for _, kid in curves.values()) > 0:
        log_y(axes)
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


def running_mean(y: np.ndarray) -> np.ndarray:
    """[N] means over a centred window of a twentieth of the values [N], cut at the ends."""
    window = np.ones(2 * (len(y) // 40) + 1)
    return np.convolve(y, window, "same") / np.convolve(np.ones(len(y)), window, "same")


def _y_axis(axes: Axes, points: Sequence[Point], floor: float | None) -> None:
    """From zero where the values are of one size; logarithmic where a bad sampler would flatten the rest."""
    low, high = min(point.fd for point in points), max(point.fd for point in points)
    if 0 < 8 * low < high:
        log_y(axes)
        axes.set_ylim(min(low, floor if floor and floor > 0 else low) / 1.4, high * 1.4)
    else:
        axes.set_ylim(min(0.0, low), 1.15 * max(p.fd + (p.sd or 0) for p in points))


def log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def log_y(axes: Axes) -> None:
    """A logarithmic y axis with those ticks."""
    axes.set_yscale("log")
    log_ticks(axes.yaxis)


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point], fixed: Sequence[Annotation]) -> None:
    """Write each point's label at the nearest spot that covers the fewest other labels and markers, and no line."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer, frame, pixels = canvas.get_renderer(), axes.get_window_extent(), axes.transData.transform
    boxes, reach = [text.get_window_extent(renderer) for text in fixed], 5 * figure.dpi / 72
    for p in points:
        ends = pixels([(p.ms, p.fd - (p.sd or 0)), (p.ms, p.fd + (p.sd or 0))])
        boxes.append(Bbox(ends).padded(reach))
    front = Path(pixels([(p.ms, p.fd) for p in pareto_front(points)]))
    for point in points:
        candidates = []
        for spot in _spots():
            text = _label(axes, point, spot)
            box = text.get_window_extent(renderer).padded(1)
            text.remove()
            outside = not (frame.contains(*box.min) and frame.contains(*box.max))
            covered = box.count_overlaps(boxes) + front.intersects_bbox(box, filled=False)
            candidates.append((10 * outside + covered, spot, box))
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


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of the report's style, in inches; the style holds inside the block only."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained", facecolor="none")


def svg(figure: Figure) -> str:
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
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
