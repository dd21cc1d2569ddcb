"""`report/`, from a run's files alone: index.html for people, results.md, results.json for programs."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from fewstep.errors import unreadable
from fewstep.eval.report import plots
from fewstep.eval.report.images import grid, image_side, neighbours, strip
from fewstep.eval.report.inputs import RunFiles, read_run
from fewstep.eval.report.notes import caveats, comparisons, tiles
from fewstep.eval.report.tables import (
    Results,
    best_teacher,
    columns,
    counted,
    duration,
    headline,
    markdown_text,
    number,
    of_kind,
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
    benchmark = results["benchmark"]
    environment = benchmark["environment"]
    where = f"{environment['device']}, {environment['processor']}, {environment['threads']} threads"
    return "\n".join(
        [
            f"# {markdown_text(results['name'])}",
            "",
            f"**{markdown_text(results['headline'])}**",
            "",
            results_table_markdown(results),
            f"Protocol `{benchmark['protocol']['hash']}`; {markdown_text(where)}.",
            "",
            *(f"- {markdown_text(note)}" for note in caveats(results)),
            "",
            "Made by:",
            "",
            *(f"    {command}" for command in results["commands"]),
            "",
        ]
    )


def page_template(name: str) -> jinja2.Template:
    """One of the shipped page templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fewstep.eval.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, duration=duration, counted=counted, flatten=flatten)
    return environment.get_template(name)


def _page(run: RunFiles, results: Results) -> str:
    return page_template("report.html").render(
        results=results,
        benchmark=results["benchmark"],
        tiles=tiles(results),
        columns=columns(results),
        rows=rows(results),
        comparisons=comparisons(results),
        caveats=caveats(results),
        quality_plot=quality_plot(results),
        curves_plot=plots.training_curves(run.logs),
        total_seconds=sum(stage["seconds"] for stage in results["stages"]),
        neighbours=_neighbours(run),
        **_pictures(run, results),
    )


def _pictures(run: RunFiles, results: Results) -> dict[str, Any]:
    """strips: the same noise through each sampler; grids: the same ones whole; others: the rest, folded."""
    best, side = best_teacher(results), image_side(run.real)
    shown = [sampler for sampler in of_kind(results, "student") if sampler["name"] in run.grids]
    shown += [] if best is None else [best]
    folded = [s for s in results["samplers"] if s["name"] in run.grids and s not in shown]
    return {
        "strips": [(sampler, strip(run.grids[sampler["name"]], side)) for sampler in shown],
        "grids": [(sampler, grid(run.grids[sampler["name"]], side)) for sampler in shown],
        "others": [(sampler, grid(run.grids[sampler["name"]], side)) for sampler in folded],
        "real": grid(run.real, side),
    }


def _neighbours(run: RunFiles) -> dict[str, Any]:
    """Whose images, the threshold of a near-copy, and the columns by how they were picked."""
    columns, side, parts = run.neighbours["columns"], image_side(run.real), []
    start = 0
    for picked, group in groupby(columns, key=lambda column: column["picked"]):
        distances = [column["distance"] for column in group]
        picture = neighbours(run.neighbours_image, side, slice(start, start + len(distances)))
        parts.append({"picked": picked, "distances": distances, "picture": picture})
        start += len(distances)
    labels = {sampler["name"]: sampler["label"] for sampler in run.results["samplers"]}
    return {
        "label": labels[run.neighbours["sampler"]],
        "threshold": run.neighbours["threshold"],
        "parts": parts,
    }


def quality_plot(results: Results) -> str | None:
    """The plot of all samplers with both quality and time, or None where there are none."""
    points = [
        plots.Point(
            label=short_label(sampler),
            kind=sampler["kind"],
            ms=sampler["timing"]["ms_per_image"],
            fd=sampler["quality"]["metrics"]["fd"]["mean"],
            sd=sampler["quality"]["metrics"]["fd"]["sd"],
        )
        for sampler in results["samplers"]
        if sampler["quality"] is not None and sampler["timing"] is not None
    ]
    benchmark = results["benchmark"]
    if not points:
        return None
    floor = benchmark["floor"]
    return plots.quality_against_time(points, benchmark["metric_name"], floor and floor["fd"])
