"""Whether a file makes the images of the stock pipeline: pixel by pixel at several batches, and by distance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.features.extractors import Extractor
from fewstep.eval.images import Generated, TensorImages, labels_for, to_uint8
from fewstep.eval.interfaces import Noise, Sampler
from fewstep.eval.noise import KeyedNoise
from fewstep.eval.quality.metrics import frechet_distance, statistics
from fewstep.eval.quality.references import Reference, extract
from fewstep.students.interfaces import Student
from fewstep.teachers.stock import quiet

BATCHES = (1, 2, 5, 63, 64, 100)
"""64: where some blocks of diffusers take another way; 63 and 100: on its two sides."""
SEED = 0
LARGEST_ERROR, LARGEST_ERROR_STEPS = 1e-5, 1e-4
"""Of a value in a range of 2, at one step and at several, where a file has the weights and precision of the student.

Each step passes the rounding of those before it on: at two steps stock diffusers itself is 1e-5 from float64.
"""
OTHER_PIXELS, FEW = 1e-4, 3
"""Share of uint8 pixels there that may be others, and a number that always may: a value that lies between two levels
can be rounded either way, which happens to one or two of a few thousand.
"""
FARTHER = 1.1
"""By what a file of fewer bits may be farther from the data, Frechet distance by the stock pipeline's."""
BATCH = 100


class StockSampler:
    """The stock pipeline of a student's folder at a number of steps, as its card says to call it."""

    kind = "pipeline"
    schedule: Sequence[float] = ()

    def __init__(self, folder: Path, student: Student, steps: int) -> None:
        with quiet():
            self.pipeline: Any = DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True)
        self.pipeline.set_progress_bar_config(disable=True)
        self.name, self.label, self.nfe = f"{folder}@{steps}", "stock diffusers", steps
        self.shape, self.num_classes = student.space.shape, student.space.num_classes
        self.networks: Any = (self.pipeline.unet,)
        self.network_parameters = sum(parameter.numel() for parameter in self.pipeline.unet.parameters())
        self.call = student.stock_call(steps)

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] on the CPU."""
        generators = list(noise.generators)
        call = self.call if self.num_classes is None else self.call | {"class_labels": labels}
        images = self.pipeline(batch_size=len(generators), generator=generators, output_type="np", **call).images
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@dataclass
class Stock:
    """What files of some number of steps are held against: the stock pipeline, its images and their distance."""

    sampler: StockSampler
    pixels: Tensor
    """uint8 [N, C, H, W]: those of the seed block SEED."""
    features: Tensor
    fd: float
    reference: Reference
    extractor: Extractor

    @classmethod
    def of(cls, sampler: StockSampler, count: int, reference: Reference, extractor: Extractor) -> "Stock":
        """Make `count` images, and measure them."""
        pixels = Generated(sampler, SEED, count, BATCH).images(0, count)
        features = extract(extractor, TensorImages(pixels), "stock images")
        fd = frechet_distance(statistics(features), reference.statistics)
        return cls(sampler, pixels, features, fd, reference, extractor)

    def fd_of(self, pixels: Tensor) -> float:
        """The distance of a file's images of the same noise. Those that are the stock pipeline's are not read again."""
        differ = (pixels != self.pixels).flatten(1).any(1)
        if not bool(differ.any()):
            return self.fd
        features = self.features.clone()
        features[differ] = extract(self.extractor, TensorImages(pixels[differ]), "images that differ")
        return frechet_distance(statistics(features), self.reference.statistics)


def parity(sampler: Sampler, stock: Stock) -> dict[str, Any]:
    """How a file's images differ from the stock pipeline's of the same noise and classes, in turn: see parity.json.

    {"batches": {"64": {"max_error", "mean_error", "equal_pixels"}}, "max_error", "mean_error", "equal_pixels",
    "other_pixels", "most_levels", "fd", "stock_fd", "images"}. Errors are of values in [-1, 1], `most_levels` of 255;
    `other_pixels` is the number of those that are not equal.
    """
    batches, levels = {}, 0
    for size in BATCHES:
        theirs, mine = (
            each.sample(KeyedNoise(each.shape, SEED, 0, size), labels_for(each, 0, size)).cpu()
            for each in (stock.sampler, sampler)
        )
        if not bool(torch.isfinite(mine).all()):
            raise UserError(sampler.name, None, f"makes images that are not finite at batch {size}")
        errors = (mine - theirs).abs().double()
        apart = _levels_apart(to_uint8(mine), to_uint8(theirs))
        levels = max(levels, int(apart.max()))
        batches[str(size)] = {
            "max_error": float(errors.max()),
            "mean_error": float(errors.mean()),
            "equal_pixels": float((apart == 0).double().mean()),
        }
    pixels = Generated(sampler, SEED, len(stock.pixels), BATCH).images(0, len(stock.pixels))
    apart = _levels_apart(pixels, stock.pixels)
    return {
        "batches": batches,
        "max_error": max(each["max_error"] for each in batches.values()),
        "mean_error": float(np.mean([each["mean_error"] for each in batches.values()])),
        "equal_pixels": float((apart == 0).double().mean()),
        "other_pixels": int((apart != 0).sum()),
        "most_levels": max(levels, int(apart.max())),
        "fd": stock.fd_of(pixels),
        "stock_fd": stock.fd,
        "images": len(pixels),
    }


def _levels_apart(one: Tensor, two: Tensor) -> Tensor:
    return (one.int() - two.int()).abs()


def fault(found: Mapping[str, Any], *, steps: int, exact: bool, pixels: bool) -> str | None:
    """Why a file of so many steps may not be used, None where it may.

    `exact`: one with the student's own weights and precision. `pixels`: one whose output is rounded already, so that an
    error is one of whole levels.
    """
    if not exact:
        worst = FARTHER * found["stock_fd"]
        farther = f"its FD is {found['fd']:.4g}, stock diffusers' {found['stock_fd']:.4g}: more than {worst:.4g}"
        return None if found["fd"] <= worst else farther
    if found["other_pixels"] > FEW and found["equal_pixels"] < 1 - OTHER_PIXELS:
        return f"{found['equal_pixels']:.4%} of its pixels are stock diffusers', less than {1 - OTHER_PIXELS:.2%}"
    if pixels and found["most_levels"] > 1:
        return f"a pixel differs by {found['most_levels']} levels from stock diffusers'"
    allowed = LARGEST_ERROR if steps == 1 else LARGEST_ERROR_STEPS
    if not pixels and not found["max_error"] < allowed:
        return f"a value differs by {found['max_error']:.2g} from stock diffusers', {allowed:.0e} is allowed"
    return None
