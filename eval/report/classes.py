"""A class-conditional run's classes in its report: how often an image is of the class asked for, and FD by class."""

from typing import Any, NamedTuple

from fewstep.eval.report.tables import Results, best_teacher, firsts, mean, number, share, spread


class ByClass(NamedTuple):
    """A table with a row a sampler, and what is to be said of it."""

    columns: list[str]
    rows: list[tuple[Any, list[str]]]
    note: str


def by_class(results: Results) -> ByClass | None:
    """The students and the teacher's best sampler; None where nothing was asked to be of a class."""
    classes, best = results["benchmark"].get("classes"), best_teacher(results)
    shown = [each for each in firsts(results) if each["kind"] == "student" or (best and each["name"] == best["name"])]
    shown = [sampler for sampler in shown if mean(sampler, "class_agreement") is not None]
    if classes is None or not shown:
        return None
    names = {f"fd_class_{index}": name for index, name in enumerate(classes["names"])}
    names = {key: name for key, name in names.items() if any(mean(each, key) is not None for each in shown)}
    rows = []
    for sampler in shown:
        metrics = sampler["quality"]["metrics"]
        distances = [spread(metrics.get(key)) for key in names]
        rows.append((sampler, [sampler["label"], share(metrics["class_agreement"]["mean"]), *distances]))
    metric = results["benchmark"]["metric_name"]
    note = (
        f"Agreement: the share of images whose {classes['neighbours']} nearest real images, by these features, are "
        f"mostly of the class that was asked for; of real images {share(classes['real_agreement'])} are. "
    )
    if names:
        note += f"{metric} of a class is of few images, and larger for it: compare it within its column alone."
    return ByClass(["Sampler", "Agreement ↑", *(f"{metric}, {name} ↓" for name in names.values())], rows, note)


def conversions(results: Results) -> list[dict[str, Any]]:
    """How far each first student's denoiser was from its teacher's before distillation, by noise level."""
    found = []
    for training in results.get("trainings", ()):
        errors = training.get("conversion_rmse")
        if not errors or training["training"] > 1:
            continue
        cells = [(sigma, number(error)) for sigma, error in errors.items()]
        found.append({"name": training["stage"], "regression": training.get("regression"), "cells": cells})
    return found
