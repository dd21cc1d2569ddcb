"""The report of a benchmark of subjects: index.html, results.md and results.json, from the files it left."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.eval.quality.protocol import slug
from fewstep.eval.report.images import grid, image_side
from fewstep.eval.report.page import common, page_template, results_markdown
from fewstep.eval.report.regression import read_measured
from fewstep.eval.report.tables import Results, mean, number, results_table_markdown
from fewstep.files import write_bytes, write_json


def write_comparison(folder: Path, commands: Sequence[str]) -> str:
    """Write index.html, results.md and results.json into a benchmark's folder; returns the table in markdown."""
    measured = read_measured(folder)
    results = {"format": 1, "name": "benchmark", "headline": headline(measured), "commands": list(commands), **measured}
    write_json(folder / "results.json", results)
    write_bytes(folder / "results.md", results_markdown(results).encode())
    files = [(each, folder / "grids" / f"{slug(each['name'])}.png") for each in results["samplers"]]
    pngs = [(sampler, file.read_bytes()) for sampler, file in files if file.is_file()]
    grids = [(sampler, grid(png, image_side(png))) for sampler, png in pngs]
    write_bytes(folder / "index.html", page_template("comparison.html").render(**common(results), grids=grids).encode())
    return results_table_markdown(results)


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
