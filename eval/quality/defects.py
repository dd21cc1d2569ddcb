"""Graded defects of real images, and how far from real images an extractor puts them: the check of an extractor.

    python -m fewstep.eval.quality.defects FOLDER:SPLIT ... [--inception FILE] -o FILE.json

A FOLDER holds parquet files of images and labels in the hub's layout. small-cnn judges them and, if a file with its
weights is given, inception too (30 minutes for each data set on one core). Features come from the cache of references.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Generator, Tensor
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor, to_pil_image

from fewstep.eval.features.extractors import Extractor, load_extractor
from fewstep.eval.features.make_small_cnn import read_parquet
from fewstep.eval.images import pixels_sha256
from fewstep.eval.quality.extrapolation import Extrapolation
from fewstep.eval.quality.metrics import statistics
from fewstep.eval.quality.references import load_reference
from fewstep.eval.speed.environment import environment
from fewstep.files import write_json

COUNT = 500  # images with a defect, and in the reference

Change = Callable[[Tensor, Generator], Tensor]
"""uint8 [N, C, H, W] -> the same with a defect."""


def _uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def blur(share: float) -> Change:
    """Return a Gaussian blur whose standard deviation is `share` of the height."""

    def change(images: Tensor, _: Generator) -> Tensor:
        sigma = share * images.shape[-2]
        return _uint8(gaussian_blur(images.float(), [2 * int(3 * sigma + 0.5) + 1] * 2, [sigma]))

    return change


def noise(levels: float) -> Change:
    """Return Gaussian noise with a standard deviation of `levels` out of 255."""
    return lambda images, generator: _uint8(images + levels * torch.randn(images.shape, generator=generator))


def contrast(factor: float) -> Change:
    """Return a scaling of each image about its mean."""

    def change(images: Tensor, _: Generator) -> Tensor:
        mean = images.float().mean((1, 2, 3), keepdim=True)
        return _uint8(mean + factor * (images - mean))

    return change


def colour(gain: float) -> Change:
    """Return more red and less blue, by `gain`; nothing changes in grey images."""

    def change(images: Tensor, _: Generator) -> Tensor:
        return _uint8(images * torch.tensor([1 + gain, 1, 1 - gain]).view(1, 3, 1, 1))

    return change


def mixed(share: float) -> Change:
    """Return a mixture of each image with `share` of another one."""

    def change(images: Tensor, generator: Generator) -> Tensor:
        other = images[torch.randperm(len(images), generator=generator)]
        return _uint8((1 - share) * images + share * other)

    return change


def jpeg(quality: int) -> Change:
    """Return JPEG compression; quality is 1..100."""

    def compressed(image: Tensor) -> Tensor:
        file = io.BytesIO()
        to_pil_image(image).save(file, "JPEG", quality=quality)
        return pil_to_tensor(Image.open(file))

    return lambda images, _: torch.stack([compressed(image) for image in images])


def shuffled(parts: int) -> Change:
    """Return a random order of the parts x parts tiles of each image."""

    def change(images: Tensor, generator: Generator) -> Tensor:
        count, channels, height, width = images.shape
        tiles = images.reshape(count, channels, parts, height // parts, parts, width // parts)
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        orders = torch.rand(count, parts**2, generator=generator).argsort(1)
        tiles = tiles[torch.arange(count)[:, None], orders].unflatten(1, (parts, parts))
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)

    return change


CHANGES: dict[str, list[tuple[str, Change]]] = {
    "blur": [(f"{share:.1%} of the height", blur(share)) for share in (0.015, 0.03, 0.06)],
    "noise": [(f"{levels} of 255", noise(levels)) for levels in (8, 24, 64)],
    "contrast": [(f"x {factor}", contrast(factor)) for factor in (0.7, 0.4)],
    "colour": [(f"red and blue by {gain:.0%}", colour(gain)) for gain in (0.1, 0.3)],
    "mixed": [(f"{share:.0%} of another image", mixed(share)) for share in (0.15, 0.4)],
    "jpeg": [(f"quality {quality}", jpeg(quality)) for quality in (30, 8)],
    "shuffled": [(f"{parts} x {parts} tiles", shuffled(parts)) for parts in (2, 4)],
}
"""Each defect in growing strength."""


Features = dict[str, dict[str, Tensor]]
"""Features [N, D] by defect and strength; of "real" the three parts of the real images."""


def defective(images: Tensor, labels: Tensor, extractor: Extractor) -> Features:
    """Return features of real images and of what defects make of them.

    images: uint8 [3 COUNT, C, H, W], shuffled. The first part is changed, the second is the reference. Lost variety
    takes whole images of the first and the third: fewer classes, or few images repeated.
    """

    def read(part: Tensor) -> Tensor:
        features = load_reference(part, {"dataset": "defects", "split": None}, extractor).features
        assert features is not None
        return features

    first, second, third = (read(part.contiguous()) for part in images.split(COUNT))
    found: Features = {"real": {"first": first, "second": second, "third": third}}
    for defect, strengths in CHANGES.items():
        if defect != "colour" or images.shape[1] == 3:
            generators = (Generator().manual_seed(0) for _ in strengths)
            changed = [change(images[:COUNT], next(generators)).contiguous() for _, change in strengths]
            found[defect] = {name: read(each) for (name, _), each in zip(strengths, changed, strict=True)}
    both, classes = torch.cat([first, third]), torch.cat([labels[:COUNT], labels[2 * COUNT :]])
    of_few = both[classes.argsort(stable=True)]
    found["classes"] = {f"{share:.0%} of the classes": of_few[: int(share * 2 * COUNT)] for share in (0.5, 0.25)}
    found["repeated"] = {f"each {n} times": both[: COUNT // n].repeat(n, 1) for n in (5, 25)}
    return found


def judged(found: Features) -> dict[str, dict[str, float]]:
    """Return, by defect and strength, the Frechet distance to real images minus its floor.

    The floor is the mean distance of the three pairs of parts of the real images, put to the counts as in
    `fewstep.eval.quality.floor`.
    """
    real = [statistics(part) for part in found["real"].values()]
    pairs = [Extrapolation(real[i]).distance(real[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    distance, floor = Extrapolation(real[1]).distance, fmean(pairs)
    values = {"real": {name: pair - floor for name, pair in zip(("1 to 2", "2 to 3", "3 to 1"), pairs, strict=True)}}
    for defect, strengths in found.items():
        if defect != "real":
            floors = {name: floor * (1 / len(each) + 1 / COUNT) / (2 / COUNT) for name, each in strengths.items()}
            values[defect] = {name: distance(statistics(each)) - floors[name] for name, each in strengths.items()}
    return values | {"floor": {"mean": floor}}


def compared(source: str, extractors: list[Extractor]) -> dict[str, Any]:
    """Return what each extractor makes of the defects of FOLDER:SPLIT, and how far they agree on their order."""
    folder, _, split = source.rpartition(":")
    images, labels = read_parquet(Path(folder), split)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(images))[: 3 * COUNT])
    images, labels = images[order], labels[order]
    result: dict[str, Any] = {"images": f"{Path(folder).name}, {split}", "sha256": pixels_sha256(images)}
    lists = []
    for extractor in extractors:
        found = defective(images, labels, extractor)
        values = judged(found)
        strengths = {defect: list(each.values()) for defect, each in values.items() if defect not in ("real", "floor")}
        lists.append([value for each in strengths.values() for value in each])
        result[extractor.name] = values | {"not_monotone": [k for k, each in strengths.items() if each != sorted(each)]}
    if len(lists) > 1:
        correlation: Any = spearmanr(*lists)  # its type has no names for its parts
        result["rank_correlation"] = float(correlation.statistic)
    return result


def main() -> None:
    """Read the arguments, compare, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", metavar="FOLDER:SPLIT", nargs="+")
    parser.add_argument("--inception", metavar="FILE", type=Path)
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, required=True)
    given = parser.parse_args()
    extractors = [load_extractor("small-cnn", None, "cpu")]
    extractors += [load_extractor("inception", given.inception, "cpu")] if given.inception else []
    write_json(
        given.out,
        {
            "command": "python -m fewstep.eval.quality.defects FOLDER:SPLIT ... --inception FILE -o FILE.json",
            "images": COUNT,
            "extractors": [extractor.to_json() for extractor in extractors],
            "environment": environment(torch.device("cpu")),
            "data": [compared(source, extractors) for source in given.sources],
        },
    )


if __name__ == "__main__":
    main()
