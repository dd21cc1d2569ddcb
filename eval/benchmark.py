"""The benchmark: quality and time of every sampler under one protocol, kept sampler by sampler.

An interrupted benchmark continues: each seed block is written when it is done, and done blocks of the same
inputs are not made again. Time is measured last, for all samplers together, since they take turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.copies import SHARE, TrainingImages
from fewstep.eval.environment import environment
from fewstep.eval.extractors import Extractor
from fewstep.eval.floor import floor
from fewstep.eval.images import ENCODING, Generated
from fewstep.eval.interfaces import Sampler
from fewstep.eval.pictures import save_grid, save_neighbours
from fewstep.eval.protocol import Protocol, slug
from fewstep.eval.quality import add_block, generate, judge
from fewstep.eval.reference import Reference, load_reference
from fewstep.eval.speed import speed_ratios
from fewstep.eval.timing import Limits, measure
from fewstep.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """How much to measure.

    images: per seed block. seed_blocks: of every sampler but DDPM, which gets ddpm_seed_blocks (0: timed
    only). batch_size: of the quality pass. identity: a hash of all that makes the images (weights, sampler
    settings); kept results of another identity are not used. mirrored: training images were mirrored at
    random.
    """

    images: int
    seed_blocks: int
    ddpm_seed_blocks: int
    batch_size: int
    kid_subset_size: int
    limits: Limits
    identity: str
    mirrored: bool = False

    def check(self, reference_count: int) -> None:
        """UserError: fewer than four images; a KID subset larger than a seed block or the reference set."""
        if self.images < 4:
            raise UserError("eval.images", self.images, "is too few for precision and recall; give 4 or more")
        most = min(self.images, reference_count)
        if self.kid_subset_size > most:
            remedy = f"a KID subset cannot exceed {most} images ({self.images} generated, {reference_count} real)"
            raise UserError("eval.kid_subset_size", self.kid_subset_size, remedy)

    def blocks(self, sampler: Sampler) -> int:
        """How many seed blocks a sampler's quality is measured on."""
        return self.ddpm_seed_blocks if sampler.name.startswith("teacher@ddpm:") else self.seed_blocks


def benchmark(
    samplers: Sequence[Sampler],
    *,
    reference_images: Tensor,
    reference_provenance: dict[str, Any],
    training_images: Tensor,
    extractor: Extractor,
    settings: BenchmarkSettings,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure all samplers, write everything into `folder` and return the value of its benchmark.json.

    reference_images, training_images: uint8 [N, C, H, W]. reference_provenance: {"dataset", "split"}.
    Writes samplers/SLUG.json, grids/SLUG.png, grids/real.png, neighbours.json and .png, benchmark.json.
    UserError: settings that do not fit the data; a sampler that returns NaN; a cache that cannot be written.
    """
    settings.check(len(reference_images))
    for part in ("samplers", "grids"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _remove_others(folder, samplers)
    reference = load_reference(reference_images, reference_provenance, extractor, settings.kid_subset_size)
    run = _Run(samplers, reference, extractor, settings, folder, device, say)
    training = TrainingImages(training_images, settings.mirrored, device)
    shown = torch.randperm(len(reference_images), generator=torch.Generator().manual_seed(0))[:64]
    save_grid(folder / "grids" / "real.png", reference_images[shown])
    for sampler in samplers:
        run.quality(sampler, training)
    run.timing()
    results = [run.result(sampler) for sampler in samplers]
    value = {
        "format": 1,
        "protocol": run.protocol.to_json(),
        "metric_name": "FID" if extractor.name == "inception" else f"FD ({extractor.name})",
        "extractor": {**extractor.to_json(), "dim": extractor.dim},
        "reference": reference.provenance,
        "floor": run.floor,
        "copies": {"threshold": training.threshold, "real_share": SHARE, "how": training.how},
        "environment": environment(device),
        "sampler_order": [sampler.name for sampler in samplers],
        "speed": speed_ratios(results),
    }
    write_json(folder / "benchmark.json", value)
    return value


def _remove_others(folder: Path, samplers: Sequence[Sampler]) -> None:
    """Remove what an earlier list of samplers left in the folder."""
    known = {"real", *(slug(sampler.name) for sampler in samplers)}
    for path in [*(folder / "samplers").iterdir(), *(folder / "grids").iterdir()]:
        if path.stem not in known:
            path.unlink()


class _Run:
    """One benchmark in progress: what all samplers share, and their result files."""

    def __init__(
        self,
        samplers: Sequence[Sampler],
        reference: Reference,
        extractor: Extractor,
        settings: BenchmarkSettings,
        folder: Path,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.samplers, self.reference, self.extractor = samplers, reference, extractor
        self.settings, self.folder, self.device, self.say = settings, folder, device, say
        self.floor = floor(reference.halves, settings.images, len(reference.features))
        self.protocol = Protocol(
            reference={key: reference.provenance[key] for key in ("dataset", "split", "count", "sha256")},
            extractor=extractor.to_json(),
            images=settings.images,
            encoding=ENCODING,
        )
        judged = [sampler for sampler in samplers if settings.blocks(sampler)]
        students = [sampler for sampler in judged if sampler.kind == "student"]
        self.neighbours_of = (students or judged or [None])[0]

    def result(self, sampler: Sampler) -> dict[str, Any]:
        """The kept result if it is of the same inputs and protocol, else an empty one."""
        path = self._path(sampler)
        if path.is_file():
            kept = read_json(path)
            quality = kept["quality"]
            same_protocol = quality is None or quality["protocol_hash"] == self.protocol.hash
            if kept["identity"] == self.settings.identity and same_protocol:
                return kept
        left_out = "too slow to sample enough images; timed only (eval.ddpm_seed_blocks is 0)"
        return {
            "format": 1,
            "name": sampler.name,
            "label": sampler.label,
            "kind": sampler.kind,
            "nfe": sampler.nfe,
            "network_parameters": sampler.network_parameters,
            "schedule": [float(value) for value in sampler.schedule],
            "identity": self.settings.identity,
            "quality": None,
            "quality_left_out": None if self.settings.blocks(sampler) else left_out,
            "timing": None,
        }

    def quality(self, sampler: Sampler, training: TrainingImages) -> None:
        """Measure the seed blocks that are not measured yet, writing the result after each."""
        settings, result = self.settings, self.result(sampler)
        for seed in range(len(result["quality"]["seeds"]) if result["quality"] else 0, settings.blocks(sampler)):
            source = Generated(sampler, seed, settings.images, settings.batch_size)
            images, features = generate(source, self.extractor, f"{sampler.label}, seed {seed}")
            metrics, neighbours = judge(
                images, features, self.reference, training, self.floor["fd"], settings.kid_subset_size
            )
            if seed == 0:
                save_grid(self.folder / "grids" / f"{slug(sampler.name)}.png", images[:64])
            if seed == 0 and sampler is self.neighbours_of:
                save_neighbours(self.folder, sampler.name, images, neighbours, training)
            result["quality"] = add_block(result["quality"], self.protocol, seed, metrics)
            write_json(self._path(sampler), result)
            self.say(f"{sampler.label}, seed {seed}: FD {metrics['fd']:.3f}, KID {metrics['kid']:.5f}")

    def timing(self) -> None:
        """Time all samplers, unless all are timed already."""
        results = [self.result(sampler) for sampler in self.samplers]
        if all(result["timing"] for result in results):
            return
        self.say(f"Timing {len(results)} samplers in turns")
        keyed = {sampler.name for sampler in self.samplers if not self.settings.blocks(sampler)}
        for clock, result in zip(
            measure(self.samplers, self.device, self.settings.limits, keyed), results, strict=True
        ):
            if clock.images is not None:
                save_grid(self.folder / "grids" / f"{slug(clock.sampler.name)}.png", clock.images)
            result["timing"] = clock.to_json()
            write_json(self._path(clock.sampler), result)
            timing = result["timing"]
            self.say(
                f"{clock.sampler.label}: {timing['latency_ms']['median']:.1f} ms for one image, "
                f"{timing['throughput']['images_per_second']:.1f} images/s"
            )

    def _path(self, sampler: Sampler) -> Path:
        return self.folder / "samplers" / f"{slug(sampler.name)}.json"
