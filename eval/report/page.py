"""`report/`, from a run's files alone: index.html for people, results.md, results.json for programs."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from fewstep.errors import unreadable
from fewstep.eval.report import plots
from fewstep.eval.report.images import Picture, grid, image_side, neighbours, strip
from fewstep.eval.report.inputs import RunFiles, read_run
from fewstep.eval.report.notes import caveats, comparisons, tiles
from fewstep.eval.report.tables import (
    Results,
    Sampler,
    best_teacher,
    columns,
    counted,
    duration,
    headline,
    markdown_text,
    number,
    results_table_markdown,
    rows,
    short_label,
)
from fewstep.files import canonical_json, flatten, staged_folder, write_bytes, write_json


def write_report(run_dir: Path, commands: Sequence[str]) -> Path:
    """Write `run_dir/report/` whole or not at all and return its index.html.

    commands: the command lines that reproduce the run, shown as they are. The same files give the same bytes.
    UserError: a file of the run is missing (named with the command that makes it), or results of different
    protocols would stand in one table (the field is named).
    """
    with unreadable(run_dir, "holds a file that fewstep did not write, or not this version of it"):
        run = read_run(Path(run_dir), commands)
        results = {"format": 1, "name": run.results["name"], "headline": headline(run.results), **run.results}
        markdown, page = results_markdown(results).encode(), _page(run, results).encode()
        canonical_json(results)  # refuses what is no number
    report = Path(run_dir) / "report"
    with staged_folder(report) as stage:
        write_json(stage / "results.json", results)
        write_bytes(stage / "results.md", markdown)
        write_bytes(stage / "index.html", page)
    return report / "index.html"


def results_markdown(results: Results) -> str:
    """results.md: headline, table, and what is needed to make and to judge it."""
    return page_template("results.md").render(
        results=results, benchmark=results["benchmark"], caveats=caveats(results), table=results_table_markdown(results)
    )


def page_template(name: str) -> jinja2.Template:
    """One of the shipped page templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fewstep.eval.report", "templates"),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        number=number, duration=duration, counted=counted, flatten=flatten, markdown=markdown_text
    )
    return environment.get_template(name)


def common(results: Results) -> dict[str, Any]:
    """What the templates of both pages show."""
    return {
        "results": results,
        "benchmark": results["benchmark"],
        "columns": columns(results),
        "rows": rows(results),
        "caveats": caveats(results),
        "quality_plot": _quality_plot(results),
    }


def _page(run: RunFiles, results: Results) -> str:
    return page_template("report.html").render(
        **common(results),
        tiles=tiles(results),
        comparisons=comparisons(results),
        curves_plot=plots.training_curves(run.logs),
        total_seconds=sum(stage["seconds"] for stage in results["stages"]),
        neighbours=_neighbours(run),
        **_pictures(run, results),
    )


def _pictures(run: RunFiles, results: Results) -> dict[str, Any]:
    """strips: the same noise through each sampler; grids: the same ones whole; others: the rest, folded."""
    best, side = best_teacher(results), image_side(run.real)
    there = [sampler for sampler in results["samplers"] if sampler["name"] in run.grids]
    shown = [sampler for sampler in there if sampler["kind"] == "student"] + ([best] if best else [])

    def of(samplers: list[Sampler], cut: Callable[[bytes, int], Picture]) -> list[tuple[Sampler, Picture]]:
        return [(sampler, cut(run.grids[sampler["name"]], side)) for sampler in samplers]

    others = of([sampler for sampler in there if sampler not in shown], grid)
    return {"strips": of(shown, strip), "grids": of(shown, grid), "others": others, "real": grid(run.real, side)}


def _neighbours(run: RunFiles) -> dict[str, Any]:
    """Whose images, the threshold of a near-copy, and the columns by how they were picked."""
    start, parts = 0, []
    for picked, group in groupby(run.neighbours["columns"], key=lambda column: column["picked"]):
        distances = [column["distance"] for column in group]
        columns = slice(start, start := start + len(distances))
        picture = neighbours(run.neighbours_image, image_side(run.real), columns)
        parts.append({"picked": picked, "distances": distances, "picture": picture})
    labels = {sampler["name"]: sampler["label"] for sampler in run.results["samplers"]}
    return {"label": labels[run.neighbours["sampler"]], "threshold": run.neighbours["threshold"], "parts": parts}


def _quality_plot(results: Results) -> str | None:
    """The plot of all samplers with both quality and time, or None where there are none."""
    shown = [sampler for sampler in results["samplers"] if sampler["quality"] and sampler["timing"]]
    if not shown:
        return None
    fds = [sampler["quality"]["metrics"]["fd"] for sampler in shown]
    points = [
        plots.Point(short_label(sampler), sampler["kind"], sampler["timing"]["ms_per_image"], fd["mean"], fd["sd"])
        for sampler, fd in zip(shown, fds, strict=True)
    ]
    benchmark = results["benchmark"]
    return plots.quality_against_time(points, benchmark["metric_name"], benchmark["floor"] and benchmark["floor"]["fd"])
