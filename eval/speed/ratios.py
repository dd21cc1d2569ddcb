"""Speed ratios of the students: against the full DDPM teacher and the cheapest solver that is as good."""

from collections.abc import Sequence
from typing import Any

from fewstep.eval.report.tables import mean, of_kind, speedup

WITHIN = 1.1  # "as good": a Frechet distance of at most 1.1 times the student's


def speed_ratios(samplers: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each student: how many times the images per second of a teacher's sampler it makes.

    {student's name: {"against_ddpm": x | null, "against_cheapest_within_10pct": {"name", "ratio"} | null}}, from
    sampler results of one protocol. Null: no DDPM in the table; no quality, or no solver within 10 % of the
    student's.
    """
    ours = {"samplers": [sampler for sampler in samplers if sampler["kind"] in ("teacher", "student")]}
    teachers = of_kind(ours, "teacher")
    return {
        student["name"]: {
            "against_ddpm": speedup(ours, student),
            "against_cheapest_within_10pct": _against_cheapest(student, teachers),
        }
        for student in of_kind(ours, "student")
    }


def _against_cheapest(student: dict[str, Any], teachers: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    most = WITHIN * (mean(student, "fd") or 0)
    good = [teacher for teacher in teachers if (fd := mean(teacher, "fd")) is not None and fd <= most]
    cheapest = min(good, key=lambda teacher: teacher["timing"]["ms_per_image"], default=None)
    if student["quality"] is None or student["timing"] is None or cheapest is None:
        return None
    ratio = cheapest["timing"]["ms_per_image"] / student["timing"]["ms_per_image"]
    return {"name": cheapest["name"], "ratio": ratio}
