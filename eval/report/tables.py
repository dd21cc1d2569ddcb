"""A report's numbers in words: formats, headline, table, made from results.json's content."""

import html
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Results = dict[str, Any]
Sampler = dict[str, Any]
NONE = "–"
WORDS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
COLUMNS = (
    "Sampler",
    "NFE",
    "{metric} ↓",
    "minus floor ↓",
    "KID ↓",
    "Precision ↑",
    "Recall ↑",
    "Near-copies",
    "Latency, ms: median (p90) ↓",
    "Images/s ↑",
    "Speedup ↑",
)


def number(value: float, digits: int = 3) -> str:
    """A number to `digits` significant figures, thousands separated, in exponent form only below 1e-4."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    magnitude = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def times(ratio: float) -> str:
    """A ratio of speeds, to three significant figures however large: no measurement of a time has more."""
    return f"{number(float(f'{ratio:.2e}'))}×"


def share(value: float) -> str:
    """A share of 0..1 as a percentage."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Seconds for people: "4.2 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def spread(metric: dict[str, Any] | None) -> str:
    """Mean ± standard deviation over seed blocks; the mean alone where one block gives no interval."""
    if metric is None:
        return NONE
    text, sd = number(metric["mean"]), metric["sd"]
    if sd is None:
        return text
    decimals = len(text.partition(".")[2])
    tiny = "e" in text or 0 < sd < 0.5 * 10**-decimals
    return f"{text} ± {number(sd, 1) if tiny else f'{sd:,.{decimals}f}'}"


def counted(count: int, noun: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def mean(sampler: Sampler, metric: str) -> float | None:
    """A metric's mean over the seed blocks, or None where it was not measured."""
    entry = (sampler["quality"] or {}).get("metrics", {}).get(metric)
    return None if entry is None else entry["mean"]


def subject(sampler: Sampler) -> str:
    """ "cd-2@1" -> "cd-2"."""
    return sampler["name"].rpartition("@")[0]


def firsts(results: Results) -> list[Sampler]:
    """The samplers in the table's order, of a student that was trained several times those of the first training."""
    repeats = {each["name"] for each in results.get("trainings", ()) if each["training"] > 1}
    return [sampler for sampler in results["samplers"] if subject(sampler) not in repeats]


def of_kind(results: Results, kind: str) -> list[Sampler]:
    """Those of "teacher" or "student" of `firsts`."""
    return [sampler for sampler in firsts(results) if sampler["kind"] == kind]


def over_trainings(results: Results, sampler: Sampler, metric: str) -> dict[str, Any] | None:
    """Mean, standard deviation and values of a metric over the trainings of a student; sd None: there is one.

    `sampler` is that of the first training. Each value is a mean over seed blocks; None where one is missing.
    """
    student, at, steps = sampler["name"].rpartition("@")
    named = {each["name"]: each for each in results["samplers"]}
    names = [each["name"] for each in results.get("trainings", ()) if each["student"] == student] or [student]
    values = [mean(named[f"{name}{at}{steps}"], metric) for name in names if f"{name}{at}{steps}" in named]
    found = [value for value in values if value is not None]
    if len(found) < len(names):
        return None
    return {"mean": fmean(found), "sd": stdev(found) if len(found) > 1 else None, "values": found}


def short_label(sampler: Sampler) -> str:
    """ "Teacher, DDIM, 50 steps" -> "DDIM, 50 steps"; a student keeps its label."""
    return sampler["label"].removeprefix("Teacher, ")


def best_teacher(results: Results) -> Sampler | None:
    """The teacher's sampler with the lowest FD."""
    measured = [sampler for sampler in of_kind(results, "teacher") if mean(sampler, "fd") is not None]
    return min(measured, key=lambda sampler: sampler["quality"]["metrics"]["fd"]["mean"], default=None)


def fastest_student(results: Results) -> Sampler | None:
    """The student with the fewest network evaluations, of several the best, among those whose quality was measured.

    The best is the one with the lowest mean over trainings.
    """
    judged = [(each, over_trainings(results, each, "fd")) for each in of_kind(results, "student")]
    measured = [(each["nfe"], over["mean"], each) for each, over in judged if over is not None]
    return min(measured, key=lambda found: found[:2], default=(0, 0.0, None))[2]


def full_ddpm(results: Results) -> Sampler | None:
    """The ancestral sampler with the most steps, against which a speedup is stated."""
    ddpm = [sampler for sampler in results["samplers"] if "@ddpm:" in sampler["name"]]
    return max(ddpm, key=lambda sampler: sampler["nfe"], default=None)


def speedup(results: Results, sampler: Sampler) -> float | None:
    """How many times DDPM's images per second; None where either was not timed."""
    ddpm = full_ddpm(results)
    if ddpm is None or ddpm["timing"] is None or sampler["timing"] is None:
        return None
    return ddpm["timing"]["ms_per_image"] / sampler["timing"]["ms_per_image"]


def headline(results: Results) -> str:
    """The run in one sentence: evaluations, speedup, and quality beside the teacher's best."""
    student, teacher, ddpm = fastest_student(results), best_teacher(results), full_ddpm(results)
    if student is None:
        return f"{results['name']}: no student’s quality was measured."
    nfe, start = student["nfe"], counted(student["nfe"], "network evaluation")
    start = start.replace(str(nfe), WORDS[nfe]) if nfe < len(WORDS) else start
    fd, trainings = over_trainings(results, student, "fd"), results.get("trainings", ())
    assert fd is not None
    quality = f"{results['benchmark']['metric_name']} {spread(fd)}"
    of = [subject(student)] if len({each["student"] for each in trainings}) > 1 else []
    of += [f"{len(fd['values'])} trainings"] if fd["sd"] is not None else []
    quality += f" ({', '.join(of)})" if of else ""
    if teacher is not None:
        best = number(teacher["quality"]["metrics"]["fd"]["mean"])
        quality += f" against the teacher’s best {best} ({short_label(teacher)})"
    ratio = speedup(results, student)
    if ddpm is None or ratio is None:
        return f"{start}: {quality}."
    return f"{start} instead of {ddpm['nfe']:,}: {times(ratio)} faster than DDPM, at {quality}."


def columns(results: Results) -> tuple[str, ...]:
    """The table's headings, with the metric by its own name."""
    return tuple(column.format(metric=results["benchmark"]["metric_name"]) for column in COLUMNS)


def rows(results: Results) -> list[tuple[Sampler, tuple[str, ...]]]:
    """The table, a row a sampler, its cells as text."""
    return [(sampler, _cells(results, sampler)) for sampler in firsts(results)]


def _cells(results: Results, sampler: Sampler) -> tuple[str, ...]:
    metrics = (sampler["quality"] or {}).get("metrics", {})
    copies, timing, ratio = mean(sampler, "copies"), sampler["timing"], speedup(results, sampler)
    latency = NONE
    if timing:
        p90 = timing["latency_ms"]["p90"]
        latency = number(timing["latency_ms"]["median"]) + ("" if p90 is None else f" ({number(p90)})")
    return (
        sampler["label"],
        NONE if sampler["nfe"] is None else f"{sampler['nfe']:,}",
        *(spread(metrics.get(name)) for name in ("fd", "fd_minus_floor", "kid", "precision", "recall")),
        NONE if copies is None else share(copies),
        latency,
        NONE if timing is None else number(timing["throughput"]["images_per_second"]),
        NONE if ratio is None else times(ratio),
    )


def results_table_markdown(results: Results) -> str:
    """The table in GitHub's markdown, the one that results.md and a README show."""
    return table_markdown(columns(results), [cells for _, cells in rows(results)])


def table_markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's markdown from cells as plain text."""
    first, *rest = ["| " + " | ".join(markdown_text(cell) for cell in cells) + " |" for cells in (head, *lines)]
    return "\n".join([first, "|:--|" + "--:|" * (len(head) - 1), *rest]) + "\n"


def markdown_text(text: str) -> str:
    """Text that markdown and a table cell show as it stands."""
    return html.escape(text, quote=False).replace("|", "\\|")
