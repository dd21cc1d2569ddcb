"""How well a model denoises at each noise level, beside two denoisers that are no network.

These are fitted to other images of the data than the model is measured on, and their errors are expectations over the
noise: anybody could have them without a network. Left out is the best denoiser for those other images alone, their mean
weighted by the likelihood of each: it tells more than a linear filter only in the middle (on the digits errors of 0.28,
0.36 and 0.51 at sigma 0.15, 1.2 and 3.5, and of a linear filter 0.12, 0.41 and 0.51), as below it is the nearest image.
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fewstep.eval.speed.timing import synchronise
from fewstep.progress import ProgressLine
from fewstep.teachers.interfaces import Condition, Denoiser, per_image, randn
from fewstep.teachers.load import PREDICTIONS
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import GROWING, SCALINGS, Discrete

BATCH = 64
LARGEST = 4096  # numbers of an image whose covariance is taken
ENOUGH = 10  # images of a class for a mean of its own
EQUAL = 1.05  # an error that is above a filter's by so much counts as the same
DOUBT = 1.03  # errors that are lower by so much under another prediction type make that the likely one
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What denoisers that are no network reach on the measured images, as root mean squared errors.

    power: float64 [D], the mean square of each coordinate of the measured images around the mean image of the others.
    eigenvalues: float64 [D], of the covariance of the others, of whose eigenvectors the coordinates then are; None: the
    images have more than LARGEST numbers, and their coordinates are pixels.
    """

    power: Tensor
    eigenvalues: Tensor | None

    def shrinkage(self, sigma: float) -> float:
        """sqrt(s^2*v/(s^2 + v)), v the mean of `power`: x shrunk towards the mean image by the best factor.

        A network that is worse is of no use at that level, as `trusted_range` has it.
        """
        v = float(self.power.mean())
        return math.sqrt(sigma**2 * v / (sigma**2 + v))

    def linear(self, sigma: float) -> float | None:
        """The Wiener filter of the others, which multiplies coordinate i by k = l/(s^2 + l), l its eigenvalue.

        sqrt(mean((1 - k)^2*p + k^2*s^2)), p of `power`. Where p = l that is sqrt(mean(s^2*l/(s^2 + l))), the least
        error of any denoiser for Gaussian data; for others a good network lies below. At most `shrinkage`, which is
        linear too and better where the others are too few for a covariance.
        """
        if self.eigenvalues is None:
            return None
        kept = self.eigenvalues / (self.eigenvalues + sigma**2)
        error = (1 - kept).square() * self.power + (kept * sigma).square()
        return min(float(error.mean().sqrt()), self.shrinkage(sigma))


def fit_filters(images: Tensor, others: Tensor, labels: tuple[Tensor, Tensor] | None = None) -> Filters:
    """Filters of `others` for `images`, both uint8 [N, C, H, W].

    With `labels` of both, int64 [N] each, the mean image is that of the class, where ENOUGH others are of it.
    """
    rows, kinds = _flat(others), (None, None) if labels is None else labels
    centre, means = rows.mean(0), dict[int, Tensor]()
    for kind in [] if kinds[1] is None else kinds[1].unique().tolist():
        if int((own := kinds[1] == kind).sum()) >= ENOUGH:
            means[kind] = rows[own].mean(0)

    def centred(rows: Tensor, kinds: Tensor | None) -> Tensor:
        return rows - (centre if kinds is None else torch.stack([means.get(kind, centre) for kind in kinds.tolist()]))

    eigenvalues = basis = None
    if rows.shape[1] <= LARGEST:
        rows = centred(rows, kinds[1])
        eigenvalues, basis = torch.linalg.eigh(rows.T @ rows / len(rows))
        eigenvalues = eigenvalues.clamp(min=0)
    power = torch.zeros_like(centre)
    for part in _batches(len(images)):
        mine = centred(_flat(images[part]), None if kinds[0] is None else kinds[0][part])
        power += (mine if basis is None else mine @ basis).square().sum(0) / len(images)
    return Filters(power=power, eigenvalues=eigenvalues)


def _flat(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> float64 [N, C*H*W] in [-1, 1]."""
    return images.flatten(1).double() / 127.5 - 1


def _batches(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


@torch.inference_mode()
def denoise(
    model: Denoiser, images: Tensor, condition: Condition, sigmas: Sequence[float], device: torch.device
) -> tuple[list[dict[str, float]], float]:
    """Root mean squared errors on uint8 images [N, C, H, W] at each of `sigmas`, and seconds for one image.

    An error is that of D(x; sigma) under "" and of other readings of a network's output under their names. The time is
    the median of all batches but the first, which warms up.
    """
    generator, found, seconds = torch.Generator().manual_seed(0), [], list[float]()
    with ProgressLine("denoising", len(sigmas) * len(images)) as line:
        for index, value in enumerate(sigmas):
            squares = defaultdict[str, float](float)
            for part in _batches(len(images)):
                x_0 = images[part].to(device).float() / 127.5 - 1
                x = x_0 + value * randn(tuple(x_0.shape), generator, device)
                sigma = torch.full((len(x),), value, device=device)
                synchronise(device)
                began = time.perf_counter()
                estimate = model(x, sigma, condition.of(part))
                synchronise(device)
                seconds.append((time.perf_counter() - began) / len(x))
                for name, each in ({"": estimate} | other_readings(model, x, sigma, estimate)).items():
                    squares[name] += float((each - x_0).double().square().sum()) / images.numel()
                if line.bar:  # a file or a pipe holds the result alone
                    line.update(index * len(images) + part.start, f"sigma {value:.3g}")
            found.append({name: math.sqrt(square) for name, square in squares.items()})
    return found, statistics.median(seconds[1:])


def other_readings(model: Denoiser, x: Tensor, sigma: Tensor, estimate: Tensor) -> dict[str, Tensor]:
    """What D(x; sigma) [B,C,H,W] would be if a DDPM's network predicted something else, by prediction type.

    Of every type the input is the same, so that the output follows from `estimate`, which is D. {}: it is no DDPM.
    """
    if not isinstance(model, Preconditioned) or not isinstance(scaling := model.scaling, Discrete):
        return {}
    own, others = model.scaling(sigma), [name for name in PREDICTIONS if name != model.scaling.name]
    output = (estimate - per_image(own.c_skip) * x) / per_image(own.c_out)
    read = {name: SCALINGS[name](scaling.table)(sigma) for name in others}
    return {name: per_image(each.c_skip) * x + per_image(each.c_out) * output for name, each in read.items()}


def compared(filters: Filters, sigma: float, errors: Mapping[str, float]) -> dict[str, Any]:
    """One level of `denoise` as a row: {"sigma", "error", "linear", "shrinkage", "against", "read_as"}.

    "against" says how the error is to that of the linear filter, of shrinkage where there is no other: "better",
    "equal" (at most EQUAL times as large) or "worse". "read_as" has the errors of other readings by prediction type.
    """
    row = {"sigma": sigma, "error": errors[""], "linear": filters.linear(sigma), "shrinkage": filters.shrinkage(sigma)}
    against = "better" if row["error"] < _bar(row) else "equal" if row["error"] <= EQUAL * _bar(row) else "worse"
    return row | {"against": against, "read_as": {name: each for name, each in errors.items() if name}}


def _bar(row: Mapping[str, Any]) -> float:
    return row["shrinkage"] if row["linear"] is None else row["linear"]


def likely_other(rows: Rows, prediction: str) -> str | None:
    """Another type than that of a model's configuration, under which its errors are lower by DOUBT, or None.

    That is in the geometric mean over the levels at which any type is better than the filter, as itself is at one. At
    others nothing can be told: the errors of a good network that predicts noise are large at large sigma.
    """
    read = _readings(rows, prediction)
    telling = [index for index, row in enumerate(rows) if any(each[index] < _bar(row) for each in read.values())]
    if not telling:
        return None
    logs = {name: statistics.fmean(math.log(max(each[i], 1e-9)) for i in telling) for name, each in read.items()}
    good = (name for name, each in read.items() if any(each[index] < _bar(rows[index]) for index in telling))
    best = min(good, key=lambda name: logs[name])
    return best if logs[prediction] - logs[best] > math.log(DOUBT) else None


def worse_at(rows: Rows, prediction: str) -> str | None:
    """Return "expected" or "unexpected" for the noise levels at which a model is worse than the filter; None: at none.

    They are expected of a network that predicts noise or a score, above all the levels at which it is better.
    """
    worse, better = ([row["sigma"] for row in rows if row["against"] == each] for each in ("worse", "better"))
    if not worse:
        return None
    sound = prediction in GROWING and better and min(worse) > max(better) and likely_other(rows, prediction) is None
    return "expected" if sound else "unexpected"


def _readings(rows: Rows, prediction: str) -> dict[str, list[float]]:
    """The errors at all levels by prediction type."""
    found = {prediction: [row["error"] for row in rows]}
    return found | {name: [row["read_as"][name] for row in rows] for name in rows[0]["read_as"]}


def verdict(rows: Rows, prediction: str) -> str:
    """One line: at which levels a model denoises better than the filter, or what is probably wrong with it."""
    name = "shrinking towards the mean image" if rows[0]["linear"] is None else "a linear filter of the data"
    other = likely_other(rows, prediction)
    errors = _readings(rows, prediction)[other or prediction]
    good = [error < _bar(row) for row, error in zip(rows, errors, strict=True)]
    runs = groupby(zip(good, rows, strict=True), lambda pair: pair[0])
    ends = [[row["sigma"] for _, row in run] for fits, run in runs if fits]
    ranges = " and ".join(f"{run[0]:.3g} to {run[-1]:.3g}" if len(run) > 1 else f"{run[0]:.3g}" for run in ends)
    better = f"better than {name} at sigma {ranges} ({sum(good)} of {len(rows)} levels)"
    if other is not None:
        return (
            f"its network seems to give {other}, and its configuration says {prediction}: prediction_type in "
            f"scheduler_config.json is probably wrong; read as {other}, it denoises {better}"
        )
    if any(good):
        return f"it denoises {better}"
    if all(row["against"] == "equal" for row in rows):
        return f"it denoises as well as {name} and nowhere better: it knows no more of the images than that does"
    return (
        f"it denoises nowhere better than {name}: its prediction type, scaling or schedule is probably not what its "
        "configuration says, or it was hardly trained, or on other images"
    )
