"""Reports of a run and of a benchmark of subjects, from the files they left: index.html, results.md, results.json."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from fewstep.errors import unreadable
from fewstep.eval.quality.protocol import slug
from fewstep.eval.report import method_plots, plots
from fewstep.eval.report.classes import by_class, conversions
from fewstep.eval.report.images import Picture, grid, image_side, neighbours, strip, strip_of_classes
from fewstep.eval.report.inputs import RunFiles, read_run
from fewstep.eval.report.methods import SideBySide, methods, side_by_side, training_curves
from fewstep.eval.report.notes import caveats, comparisons, tiles
from fewstep.eval.report.regression import read_measured
from fewstep.eval.report.tables import (
    Results,
    Sampler,
    best_teacher,
    columns,
    counted,
    duration,
    fastest_student,
    firsts,
    headline,
    markdown_text,
    mean,
    number,
    over_trainings,
    results_table_markdown,
    rows,
    short_label,
    subject,
)
from fewstep.files import flatten, json_text, staged_folder, write_bytes


def write_report(run_dir: Path, commands: Sequence[str]) -> Path:
    """Write `run_dir/report/` whole or not at all and return its index.html.

    commands: the command lines that reproduce the run, shown as they are. The same files give the same bytes.
    UserError: a file of the run is missing (named with the command that makes it), or results of different
    protocols would stand in one table (the field is named).
    """
    with unreadable(run_dir, "holds a file that fewstep did not write, or not this version of it"):
        run = read_run(Path(run_dir), commands)
        results = {"format": 1, "name": run.results["name"], "headline": headline(run.results), **run.results}
        shown = {"tiles": tiles(results), "comparisons": comparisons(results), "neighbours": _neighbours(run)}
        repeats = {each["stage"] for each in results["trainings"] if each["training"] > 1}
        logs = {stage: log for stage, log in run.logs.items() if stage not in repeats}
        found = side_by_side(results)
        shown |= {"classes": by_class(results), "conversions": conversions(results)}
        shown |= {"curves_plot": plots.training_curves(logs, quality=found is None)}
        shown |= {"levels_plot": plots.losses_by_level(logs)}
        shown |= {"method_plots": [] if found is None else _method_plots(results, run.logs)}
        files = _files(results, "report.html", found, **shown, **_pictures(run, results))
    report = Path(run_dir) / "report"
    with staged_folder(report) as stage:
        for name, text in files.items():
            write_bytes(stage / name, text.encode())
    return report / "index.html"


def write_comparison(folder: Path, commands: Sequence[str]) -> str:
    """Write index.html, results.md and results.json into a benchmark's folder; returns the table in markdown."""
    measured = read_measured(folder)
    title = {"format": 1, "name": "benchmark", "headline": benchmark_headline(measured)}
    results = {**title, "commands": list(commands), **measured}
    pngs = [(each, folder / "grids" / f"{slug(each['name'])}.png") for each in results["samplers"]]
    pngs = [(sampler, path.read_bytes()) for sampler, path in pngs if path.is_file()]
    grids = [(sampler, grid(png, image_side(png))) for sampler, png in pngs]
    for name, text in _files(results, "comparison.html", grids=grids).items():
        write_bytes(folder / name, text.encode())
    return results_table_markdown(results)


def benchmark_headline(results: Results) -> str:
    """The best and the fastest subject in one sentence."""
    metric, samplers = results["benchmark"]["metric_name"], results["samplers"]
    judged = [(value, sampler) for sampler in samplers if (value := mean(sampler, "fd")) is not None]
    timed = [sampler for sampler in samplers if sampler["timing"] is not None]
    parts = []
    if judged:
        value, best = min(judged, key=lambda pair: pair[0])
        parts.append(f"Best {metric}: {best['label']}, {number(value)}")
    if timed:
        fastest = min(timed, key=lambda sampler: sampler["timing"]["ms_per_image"])
        parts.append(f"fastest: {fastest['label']}, {number(fastest['timing']['ms_per_image'])} ms an image")
    return f"{'; '.join(parts)}."


def _files(results: Results, template: str, found: SideBySide | None = None, **shown: object) -> dict[str, str]:
    """The three files of a report by name; `shown`: what its page shows besides what all pages do."""
    common = {"results": results, "benchmark": results["benchmark"], "caveats": caveats(results), "methods": found}
    table = {"columns": columns(results), "rows": rows(results), "quality_plot": _quality_plot(results)}
    return {
        "results.json": json_text(results),
        "results.md": page_template("results.md").render(**common, table=results_table_markdown(results)),
        "index.html": page_template(template).render(**common, **table, **shown),
    }


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


def _pictures(run: RunFiles, results: Results) -> dict[str, Any]:
    """strips: the same noise through each sampler; grids: the same ones whole; others: the rest, folded."""
    best, side = best_teacher(results), image_side(run.real)
    there = [sampler for sampler in firsts(results) if sampler["name"] in run.grids]
    shown = [sampler for sampler in there if sampler["kind"] == "student"] + ([best] if best else [])

    def of(samplers: list[Sampler], cut: Callable[[bytes, int], Picture]) -> list[tuple[Sampler, Picture]]:
        return [(sampler, cut(run.grids[sampler["name"]], side)) for sampler in samplers]

    others = of([sampler for sampler in there if sampler not in shown], grid)
    by_class = bool(shown) and all(sampler.get("by_class") for sampler in shown)
    strips = of(shown, strip_of_classes if by_class else strip)
    return {
        "by_class": by_class,
        "strips": strips,
        "grids": of(shown, grid),
        "others": others,
        "real": grid(run.real, side),
    }


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


def _method_plots(results: Results, logs: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Captions and figures of methods side by side."""
    found, best, plotted = methods(results), best_teacher(results), []
    if curves := training_curves(results, logs):
        text = "KID of one-step images against what training has cost so far: bold the mean over trainings."
        plotted.append((text, method_plots.quality_while_training(curves)))
    panels: dict[str, list[method_plots.Ends]] = {}
    for index, method in enumerate(found):
        for steps, row in method.rows.items():
            if over := over_trainings(results, row, "fd"):
                end = method_plots.Ends(method.label, index, over["values"], over["mean"], over["sd"])
                panels.setdefault(counted(steps, "step"), []).append(end)
    if panels:
        text = "Each training faint, the mean with its standard deviation over trainings bold."
        text += " The dashed line is the teacher’s best." if best else ""
        fd = None if best is None else best["quality"]["metrics"]["fd"]["mean"]
        plotted.append((text, method_plots.ends(panels, results["benchmark"]["metric_name"], fd)))
    return plotted


def _quality_plot(results: Results) -> str | None:
    """The plot of all samplers with both quality and time, or None where there are none.

    Of several students, which are the same network, that of the headline.
    """
    shown = [sampler for sampler in results["samplers"] if sampler["quality"] and sampler["timing"]]
    if (student := fastest_student(results)) and results.get("trainings"):
        shown = [each for each in shown if each["kind"] != "student" or subject(each) == subject(student)]
    if not shown:
        return None
    fds = [sampler["quality"]["metrics"]["fd"] for sampler in shown]
    points = [
        plots.Point(short_label(sampler), sampler["kind"], sampler["timing"]["ms_per_image"], fd["mean"], fd["sd"])
        for sampler, fd in zip(shown, fds, strict=True)
    ]
    benchmark = results["benchmark"]
    return plots.quality_against_time(points, benchmark["metric_name"], benchmark["floor"] and benchmark["floor"]["fd"])
