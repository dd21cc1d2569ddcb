"""Speed ratios of the students: against the full DDPM teacher and the cheapest solver that is as good."""

from collections.abc import Sequence
from typing import Any

WITHIN = 1.1  # "as good": a Frechet distance of at most 1.1 times the student's


def speed_ratios(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each student: how many times the images per second of a teacher's sampler it makes.

    {student's name: {"against_ddpm": x | null, "against_cheapest_within_10pct": {"name", "ratio"} | null}}, from
    sampler results of one protocol. Null: no DDPM in the table; no quality, or no solver within 10 % of the
    student's.
    """
    teachers = [result for result in results if result["kind"] == "teacher"]
    ddpm = [teacher for teacher in teachers if "@ddpm:" in teacher["name"]]
    slowest = max(ddpm, key=lambda teacher: teacher["nfe"], default=None)
    return {
        result["name"]: {
            "against_ddpm": slowest and _ratio(result, slowest),
            "against_cheapest_within_10pct": _against_cheapest(result, teachers),
        }
        for result in results
        if result["kind"] == "student"
    }


def _against_cheapest(student: dict[str, Any], teachers: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if student["quality"] is None:
        return None
    most = WITHIN * student["quality"]["metrics"]["fd"]["mean"]
    good = [t for t in teachers if t["quality"] is not None and t["quality"]["metrics"]["fd"]["mean"] <= most]
    if not good:
        return None
    cheapest = min(good, key=lambda teacher: teacher["timing"]["ms_per_image"])
    return {"name": cheapest["name"], "ratio": _ratio(student, cheapest)}


def _ratio(student: dict[str, Any], teacher: dict[str, Any]) -> float:
    return teacher["timing"]["ms_per_image"] / student["timing"]["ms_per_image"]
