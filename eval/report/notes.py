"""What a report says around its table: tiles, comparisons, caveats, made from results.json's content."""

from fewstep.eval.report.tables import (
    Results,
    Sampler,
    best_teacher,
    duration,
    fastest_student,
    full_ddpm,
    mean,
    number,
    of_kind,
    over_trainings,
    share,
    short_label,
    speedup,
    spread,
    subject,
    times,
)

Tile = tuple[str, str, str]
"""A key number: its value, what it is, and a line of context."""
ABOVE = 1.1
"""Times the ratio of evaluations, above which a speedup is remarked on."""
ALWAYS_FULL_RANGE, USUAL_FULL_RANGE = 0.99, 0.8  # shares of images reaching from 0 to 255 that tell them apart


def tiles(results: Results) -> list[Tile]:
    """The run at a glance; a number that was not measured has no tile."""
    student, ddpm, found = fastest_student(results), full_ddpm(results), list[Tile]()
    if student is not None:
        ratio, timing = speedup(results, student), student["timing"]
        if ratio is not None and ddpm is not None:
            detail = f"{student['label']}, against {short_label(ddpm)}, in the same run"
            found.append((times(ratio), "faster", detail))
        same = [each for each in of_kind(results, "student") if subject(each) == subject(student)]
        found += [_quality_tile(results, each) for each in same[:2]]
        if timing is not None:
            per_second = number(timing["throughput"]["images_per_second"])
            found.append((f"{number(timing['ms_per_image'])} ms", "an image", f"{per_second} images a second"))
        copies = mean(student, "copies")
        if copies is not None:
            real = share(results["benchmark"]["copies"]["real_share"])
            found.append((share(copies), "near-copies", f"{student['label']}; among real images {real}"))
    seconds = sum(stage["seconds"] for stage in results["stages"])
    found.append((duration(seconds), "from data to result", results["benchmark"]["environment"]["processor"]))
    return found


def _quality_tile(results: Results, student: Sampler) -> Tile:
    over, metric, label = over_trainings(results, student, "fd"), results["benchmark"]["metric_name"], student["label"]
    if over is None:
        return "–", metric, f"{label}: {student['quality_left_out']}"
    value = over["mean"]
    label += f", {spread(over)} over {len(over['values'])} trainings" if over["sd"] is not None else ""
    teacher = best_teacher(results)
    best = None if teacher is None else mean(teacher, "fd")
    return number(value), metric, label + (f"; {number(value / best)} times the teacher’s best" if best else "")


def comparisons(results: Results) -> list[str]:
    """For each student sampler, its speed against DDPM and the cheapest solver that is as good.

    Nothing where there are several trainings: then methods are compared by means over them.
    """
    if len(results.get("trainings", ())) > 1:
        return []
    labels = {sampler["name"]: short_label(sampler) for sampler in results["samplers"]}
    ddpm, lines = full_ddpm(results), []
    for student in of_kind(results, "student"):
        parts, ratio = [], speedup(results, student)
        if ddpm is not None and ratio is not None:
            parts.append(f"{times(ratio)} the images/s of {short_label(ddpm)}")
        rival = results["benchmark"]["speed"][student["name"]]["against_cheapest_within_10pct"]
        if rival is not None:
            parts.append(
                f"{number(rival['ratio'])} times those of {labels[rival['name']]}, "
                "the cheapest teacher sampler that is at most 10 % worse"
            )
        elif student["quality"] is not None:
            parts.append("no teacher sampler is as good or at most 10 % worse")
        if parts:
            lines.append(f"{student['label']}: {'; '.join(parts)}.")
    return lines


def caveats(results: Results) -> list[str]:
    """How far the numbers may be trusted, in plain words."""
    return [
        *_about_distance(results),
        *_about_range(results),
        *_about_intervals(results),
        *_about_timing(results),
        *_about_trainings(results),
        *(
            f"{sampler['label']} was timed but its quality left out: {sampler['quality_left_out']}"
            for sampler in results["samplers"]
            if sampler["quality"] is None
        ),
    ]


def _about_distance(results: Results) -> list[str]:
    benchmark = results["benchmark"]
    name, floor = benchmark["metric_name"], benchmark["floor"]
    if floor is None:
        lines = [
            f"The reference is mean and covariance alone ({benchmark['reference']['dataset']}), so {name} is all that "
            f"can be measured against it, without a floor. {name} of {benchmark['protocol']['images']:,} images is too "
            "high by about c·(1/n + 1/m): compare it only within this table."
        ]
    else:
        lines = [
            f"{name} of {floor['n']:,} generated against {floor['m']:,} real images is too high by about "
            f"c·(1/n + 1/m): at these counts even real images would score {number(floor['fd'])}, the floor. "
            "Compare it only within this table, and read the column “minus floor” beside it.",
            "KID has no such bias: it can be compared across image counts, and can come out slightly negative.",
        ]
    if name != "FID":
        lines.append(
            f"{name} is not FID: its features come from {benchmark['extractor']['name']}, not Inception, "
            "so no value here can be set beside a published FID."
        )
    if "config" in results and results["config"]["data"]["reference_split"] is None:
        lines.append(
            "The reference is the training images themselves, so copying them would score well: "
            "the near-copies column and the nearest neighbours are there to show whether that happened."
        )
    return lines


def _about_range(results: Results) -> list[str]:
    """Images that were scaled by their own extremes: Frechet distances hardly see it, a reader should."""
    real = results["benchmark"]["reference"].get("full_range")
    if real is None or real > USUAL_FULL_RANGE:
        return []
    return [
        f"{share(value)} of the images of {sampler['label']} reach from 0 to 255, of the real ones {share(real)}: they "
        "look scaled by their own minimum and maximum."
        for sampler in results["samplers"]
        if (value := mean(sampler, "full_range")) is not None and value >= ALWAYS_FULL_RANGE
    ]


def _about_intervals(results: Results) -> list[str]:
    measured = [sampler for sampler in results["samplers"] if sampler["quality"] is not None]
    single = [sampler["label"] for sampler in measured if len(sampler["quality"]["seeds"]) == 1]
    if len(single) == len(measured):
        return ["Every result comes from one seed block, so no interval is given."] if single else []
    blocks = max(len(sampler["quality"]["seeds"]) for sampler in measured)
    lines = [
        f"± is the standard deviation over {blocks} seed blocks of one trained network: "
        "it holds the luck of sampling, not the luck of training."
    ]
    if single:
        lines.append(f"One seed block only, so no interval: {'; '.join(single)}.")
    return lines


def _about_trainings(results: Results) -> list[str]:
    again = [each["name"] for each in results.get("trainings", ()) if each["training"] > 1]
    if not again:
        return []
    return [
        "The table of samplers has the first training of each student. Its further ones are the same network, so they "
        f"were judged on the same seed blocks and not timed: {', '.join(again)}."
    ]


def _about_timing(results: Results) -> list[str]:
    environment = results["benchmark"]["environment"]
    timed = [(sampler, sampler["timing"]) for sampler in results["samplers"] if sampler["timing"] is not None]
    if not timed:
        return []
    lines = [
        f"Times are of one machine ({environment['processor']}, {environment['device']}, "
        f"{environment['threads']} threads), noise in to finished images out. Latency is of one image at a "
        "time, images/s of the best batch size, and speedup is the ratio of images/s."
    ]
    parts = [min(timing[key]["evaluations_timed"] for key in ("latency_ms", "throughput")) for _, timing in timed]
    long = [f"{s['label']} ({n:,} of {s['nfe']:,})" for (s, _), n in zip(timed, parts, strict=True) if n < s["nfe"]]
    paced = [f"{s['label']} (× {number(timing['pace']['factor'])})" for s, timing in timed if timing["pace"]]
    for text, which in (
        ("Too long to be timed whole, so timed over some network evaluations and scaled to all", long),
        ("Timed after the rest, and scaled by the pace of a sampler timed both times", paced),
    ):
        lines += [f"{text}: {'; '.join(which)}."] if which else []
    if any(timing["latency_ms"]["p90"] is None for _, timing in timed):
        lines.append("Where p90 is missing, fewer than 10 runs were timed.")
    ddpm = full_ddpm(results)
    above = [
        f"{sampler['label']} ({times(ratio)} for {times(ddpm['nfe'] / sampler['nfe'])} fewer evaluations)"
        for sampler, _ in timed
        if ddpm is not None and sampler["nfe"] and (ratio := speedup(results, sampler)) is not None
        if ratio > ABOVE * ddpm["nfe"] / sampler["nfe"]
    ]
    if above:
        lines.append(
            f"Faster than fewer evaluations explain: {'; '.join(above)}. The rest is DDPM’s own: its steps cost more "
            "than their evaluations, and a guided one doubles and combines its batch."
        )
    return lines
