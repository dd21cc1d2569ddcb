"""The report of a benchmark of subjects: index.html, results.md and results.json, from the files it left."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.eval.quality.protocol import slug
from fewstep.eval.report.images import grid, image_side
from fewstep.eval.report.notes import caveats
from fewstep.eval.report.page import page_template, quality_plot, results_markdown
from fewstep.eval.report.regression import read_measured
from fewstep.eval.report.tables import Results, columns, mean, number, results_table_markdown, rows
from fewstep.files import write_bytes, write_json


def write_comparison(folder: Path, commands: Sequence[str]) -> str:
    """Write index.html, results.md and results.json into a benchmark's folder; returns the table in markdown."""
    measured = read_measured(folder)
    results = {"format": 1, "name": "benchmark", "headline": headline(measured), "commands": list(commands), **measured}
    write_json(folder / "results.json", results)
    write_bytes(folder / "results.md", results_markdown(results).encode())
    write_bytes(folder / "index.html", _page(folder, results).encode())
    return results_table_markdown(results)


def _page(folder: Path, results: Results) -> str:
    grids = []
    for sampler in results["samplers"]:
        path = folder / "grids" / f"{slug(sampler['name'])}.png"
        if path.is_file():
            png = path.read_bytes()
            grids.append((sampler, grid(png, image_side(png))))
    return page_template("comparison.html").render(
        results=results,
        benchmark=results["benchmark"],
        columns=columns(results),
        rows=rows(results),
        caveats=caveats(results),
        quality_plot=quality_plot(results),
        grids=grids,
    )


def headline(results: Results) -> str:
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
