"""The choice of a student's noise levels, by KID, on real images and a seed block that no reported number uses.

KID is unbiased at any number of images and needs no covariance. A Frechet distance of fewer images than features has
a bias that depends on the spread of the images, so it prefers levels that make too little of it.
"""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from fewstep.eval import seeds
from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.features.extractors import Extractor, load_extractor
from fewstep.eval.images import Generated, TensorImages, made_in_shares, pixels_sha256
from fewstep.eval.interfaces import ALONE, ImageSource, Shares
from fewstep.eval.quality.metrics import kernel_distance
from fewstep.eval.quality.references import BATCH, extract
from fewstep.pipeline.config.schema import StudentConfig
from fewstep.pipeline.sampling.models import student_sampler
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.training import processes
from fewstep.progress import say
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.grid import StepGrid, solve_grid

SEARCHED_SIGMAS = (0.15, 0.25, 0.42, 0.65, 1.0, 1.6, 2.5, 4.0)
FACTORS = (0.16, 0.4, 2.5, 6.25)
"""The further levels of four steps that are tried, as multiples of the two-step level."""
SUBSET = 100  # images of a KID subset


class Trials:
    """Images of a student at lists of noise levels, all from the same noise, against real images.

    sample: `count` images at a list of noise levels, made in batches of `batch_size`. real: uint8 [M, C, H, W].
    `images` and `evaluations` (of the network, one image each) count what was made so far. shares: of processes that
    make one of these too and `assist` this one.
    """

    def __init__(
        self,
        sample: Callable[[list[float]], ImageSource],
        count: int,
        extractor: Extractor,
        real: Tensor,
        batch_size: int = BATCH,
        shares: Shares = ALONE,
    ) -> None:
        self.sample, self.count, self.extractor = sample, count, extractor
        self.batch_size, self.shares = batch_size, shares
        self.real = extract(extractor, TensorImages(real), f"features of {len(real):,} real images", shares=shares)
        self.images = self.evaluations = 0

    def features(self, sigmas: list[float], start: int, stop: int) -> Tensor:
        """Features [stop - start, D] of the images start..stop-1."""
        self.shares.call(sigmas, start, stop)
        self.images += stop - start
        self.evaluations += len(sigmas) * (stop - start)
        return self.assist(sigmas, start, stop)

    def assist(self, sigmas: list[float], start: int, stop: int) -> Tensor:
        """What `features` gives, in a process beside one that called it out."""
        images = made_in_shares(self.sample(sigmas), start, stop, self.batch_size, self.shares)
        return extract(self.extractor, TensorImages(images), f"noise levels {_text(sigmas)}", shares=self.shares)

    def kid(self, sigmas: list[float], stop: int) -> float:
        """KID of the images 0..stop-1; its subsets are the same ones for every list of levels."""
        features = self.features(sigmas, 0, stop)
        return kernel_distance(features, self.real, min(SUBSET, len(features), len(self.real)))


def search_levels(
    run: RunContext, settings: StudentConfig, model: ConsistencyModel, real: Tensor, steps: Collection[int]
) -> tuple[StepGrid, dict[str, Any]]:
    """Return the grid with the best levels for the numbers of `steps`, and what was tried; `real`: see `Trials`.

    The other processes are in `assist_search`.
    """
    clock, count = time.monotonic(), settings.search_images
    say(f"  searching noise levels: {count} images each, KID against {len(real):,} real images")
    with processes.dealing():
        trials = _trials(run, settings, model, real)
        grid, found = _search(trials, settings, model, steps)
    cost = {"images": trials.images, "evaluations": trials.evaluations, "seconds": time.monotonic() - clock}
    say(f"  the search made {trials.images:,} images by {trials.evaluations:,} network evaluations")
    return grid, {
        "seed_block": seeds.SEARCH,
        "images": count,
        "real": {"count": len(real), "sha256": pixels_sha256(real)},
        "metric": "KID",
        **found,
        "cost": cost,
    }


def assist_search(run: RunContext, settings: StudentConfig, model: ConsistencyModel, real: Tensor) -> None:
    """Make this process's share of the images of a search, with the weights of the process that searches."""
    processes.follow(_trials(run, settings, model, real).assist)


def _trials(run: RunContext, settings: StudentConfig, model: ConsistencyModel, real: Tensor) -> Trials:
    config, count, batch = run.config.eval, settings.search_images, run.config.eval.batch_size
    processes.copy_leading(model)
    model.register_forward_pre_hook(stop_if_cancelled)

    def sample(sigmas: list[float]) -> ImageSource:
        return Generated(student_sampler(model, len(sigmas), sigmas), seeds.SEARCH, count, batch)

    extractor = load_extractor(config.extractor, config.weights, run.device)
    return Trials(sample, count, extractor, real, batch, processes.Shares())


def _search(
    trials: Trials, settings: StudentConfig, model: ConsistencyModel, steps: Collection[int]
) -> tuple[StepGrid, dict[str, Any]]:
    """Return the grid, and what was tried for each number of `steps`, of which the larger ones build on the smaller."""
    bounds, lowest, most = (model.sigma_min, model.sigma_max), settings.method.lowest_level, max(steps)
    grid, two = choose_two_steps(trials, *bounds, lowest)
    say(f"  two steps: {_text(grid.sigmas(2, *bounds))}, the best of {len(two)}")
    found: dict[str, Any] = {"two_steps": two}
    for number, word, choose in ((4, "four", choose_four_steps), (8, "eight", choose_eight_steps)):
        if number <= most:
            grid, tried = choose(trials, grid, *bounds, lowest)
            _say_outcome(word, tried, _text(grid.sigmas(number, *bounds)) if tried else "")
            found[f"{word}_steps"] = tried
    return grid, found


def choose_two_steps(
    trials: Trials, sigma_min: float, sigma_max: float, lowest: float = 0.0
) -> tuple[StepGrid, dict[str, float]]:
    """The grid of the best two-step level, and KID by level, over all images. No steps go below the level `lowest`."""
    grids = {}
    for sigma in [sigma for sigma in SEARCHED_SIGMAS if sigma >= lowest] or [lowest]:
        with suppress(ValueError):  # out of any grid's reach between these bounds
            grids[sigma] = solve_grid(sigma, sigma_min, sigma_max).down_to(lowest, sigma_min, sigma_max)
    if not grids:
        say(f"  no level of the search is in reach of student.sigma_max = {sigma_max:g}: the grid's own is taken")
        grids = {StepGrid().sigmas(2, sigma_min, sigma_max)[1]: StepGrid()}
    values = {sigma: trials.kid([sigma_max, sigma], trials.count) for sigma in grids}
    best = min(values, key=lambda sigma: values[sigma])
    return grids[best], {str(sigma): value for sigma, value in values.items()}


def choose_four_steps(
    trials: Trials, grid: StepGrid, sigma_min: float, sigma_max: float, lowest: float = 0.0
) -> tuple[StepGrid, dict[str, Any] | None]:
    """The grid with levels chosen for four steps where they are better than its own, and what was tried.

    To the two-step level the best of a few further ones is added, and then another, by the first half of the images.
    The other half decides: KID has to fall by more than the standard error of its fall. None: the grid is too coarse.
    """
    half, points = trials.count // 2, grid.points(2)
    middle = grid.sigmas(2, sigma_min, sigma_max)[1]
    offered = {grid.nearest(middle * factor, sigma_min, sigma_max) for factor in FACTORS}
    offered = {point for point in offered if grid.at([point], sigma_min, sigma_max)[0] >= lowest}
    offered -= {0, grid.num_train_timesteps - 1, *points}
    if len(offered) < 2:
        return grid, None
    tried = {}
    while len(points) < 4:
        values = {}
        for point in sorted(offered - {*points}):
            longer = sorted([*points, point], reverse=True)
            sigmas = grid.at(longer, sigma_min, sigma_max)
            values[tuple(longer)] = tried[_text(sigmas)] = trials.kid(sigmas, half)
        points = list(min(values, key=lambda each: values[each]))
    grid, outcome = _better_of(trials, grid, points, sigma_min, sigma_max)
    return grid, {"tried": tried} | outcome


def choose_eight_steps(
    trials: Trials, grid: StepGrid, sigma_min: float, sigma_max: float, lowest: float = 0.0
) -> tuple[StepGrid, dict[str, Any] | None]:
    """The grid with levels chosen for eight steps where they are better than its own, and what was compared.

    They are those of four steps, a point half-way from each to the next one, and one as far below the last as that is
    from the level before, or half-way to the end. The second half of the images decides, as for four steps. None:
    there are no such points, or they are the grid's own.
    """
    if grid.num_train_timesteps <= 8:
        return grid, None
    low, *others = grid.points(4)
    last = grid.num_train_timesteps - 1
    middles = [(one + two) // 2 for one, two in pairwise([low, *others])]
    below = min(low + (low - others[0]) // 2, (low + last) // 2)
    points = sorted({below, low, *middles, *others}, reverse=True)
    own = points == grid.points(8)  # as where four steps keep the grid's own
    if own or len(points) < 8 or grid.at([below], sigma_min, sigma_max)[0] < lowest:
        return grid, None
    return _better_of(trials, grid, points, sigma_min, sigma_max)


def _better_of(
    trials: Trials, grid: StepGrid, points: list[int], sigma_min: float, sigma_max: float
) -> tuple[StepGrid, dict[str, Any]]:
    """The grid, with `points` chosen where KID of the second half of the images falls by more than its error."""
    steps, found = len(points), grid.at(points, sigma_min, sigma_max)
    rule, new = (
        trials.features(sigmas, trials.count // 2, trials.count)
        for sigmas in (grid.sigmas(steps, sigma_min, sigma_max), found)
    )
    gain, error = paired_gain(rule, new, trials.real)
    if gain > error:
        grid = replace(grid, chosen={**grid.chosen, steps: points})
    return grid, {"found": found, "gain": gain, "error": error}


def paired_gain(one: Tensor, two: Tensor, real: Tensor) -> tuple[float, float]:
    """By how much KID of `two` is lower than that of `one`, and the standard error of this.

    one, two: features [N, D] of images from the same noise. Over all pairs of images; the error is that of the first
    projection of this U-statistic (Hoeffding 1948), image by image, of the generated and of the real ones [M, D].
    """
    own, cross = zip(*(_kernels(features.double(), real.double()) for features in (one, two)), strict=True)
    of_generated = own[0] - own[1] - cross[0].mean(1) + cross[1].mean(1)
    of_real = cross[1].mean(0) - cross[0].mean(0)
    gain = of_generated.mean() + of_real.mean()
    return float(gain), 2 * float(of_generated.var() / len(one) + of_real.var() / len(real)) ** 0.5


def _kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """KID's kernel: the mean over all other x, of each of [N, D], and of every x with every y [N, M]."""
    own, cross = ((x @ other.T / x.shape[1] + 1) ** 3 for other in (x, y))
    return own.fill_diagonal_(0).sum(1) / (len(x) - 1), cross


def _say_outcome(word: str, tried: dict[str, Any] | None, levels: str) -> None:
    if tried is None:
        outcome = "the grid's own (no other was tried)"
    else:
        how = f"lowers KID by {tried['gain']:.2g} +- {tried['error']:.2g}"
        outcome = f"{levels} ({how})" if tried["gain"] > tried["error"] else f"the grid's own (another {how})"
    say(f"  {word} steps: {outcome}")


def _text(sigmas: list[float]) -> str:
    return ", ".join(f"{sigma:.3g}" for sigma in sigmas)
