"""The benchmark: quality and time of every sampler under one protocol, kept sampler by sampler.

An interrupted benchmark continues: each seed block is written when it is done, and done blocks of the same
inputs are not made again. Time is measured last, for all samplers together, since they take turns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.eval.features.extractors import Extractor
from fewstep.eval.features.overlap import each_batch
from fewstep.eval.images import ENCODING, Generated, StoredImages, check_varied, full_range_share, indexed, labels_for
from fewstep.eval.interfaces import ALONE, ImageSource, IndexedImages, Sampler, Shares
from fewstep.eval.quality.classes import NEIGHBOURS, RealClasses
from fewstep.eval.quality.copies import SHARE, TrainingFeatures, TrainingImages
from fewstep.eval.quality.floor import floor
from fewstep.eval.quality.judge import SCRATCH, Judge, add_block, generated
from fewstep.eval.quality.protocol import Protocol, slug
from fewstep.eval.quality.references import Reference, load_halves
from fewstep.eval.report.images import save_grid, save_neighbours
from fewstep.eval.speed.environment import environment
from fewstep.eval.speed.ratios import speed_ratios
from fewstep.eval.speed.timing import Limits, measure
from fewstep.files import read_json, read_sealed, remove, sealed, write_json

Subject = Sampler | StoredImages
KEPT = {"identity": str, "quality": (None, {"protocol_hash": str, "seeds": [int], "metrics": {}}), "timing": object}
MOST_ROWS = 16
"""Of a grid with a row for each class."""
CONDITIONS = ("device", "processor", "threads", "torch")  # a time of others is not kept
"""What is used of a result file that an earlier call left."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """How much to measure.

    images: per seed block. seed_blocks: of every sampler but DDPM, which gets ddpm_seed_blocks (0: timed
    only). batch_size: of the quality pass. identities: by subject name, a hash of all that makes its images
    (weights, sampler settings); kept results of another identity are not used. repeats: names of subjects whose network
    is that of another one, trained again: they are not timed. mirrored: training images were mirrored at random.
    """

    images: int
    seed_blocks: int
    ddpm_seed_blocks: int
    batch_size: int
    kid_subset_size: int
    limits: Limits
    identities: Mapping[str, str]
    repeats: frozenset[str] = frozenset()
    mirrored: bool = False

    def check(self, reference: Reference, subjects: Sequence[Subject]) -> None:
        """UserError: a KID subset larger than the reference, stored images too few for a seed block or all the same."""
        if reference.features is not None and self.kid_subset_size > (real := len(reference.features)):
            remedy = f"a KID subset cannot exceed the {real} real images"
            raise UserError("eval.kid_subset_size", self.kid_subset_size, remedy)
        for subject in subjects:
            if isinstance(subject, StoredImages):
                check_varied(subject.name, subject.tensor)
                if len(subject) < self.images:
                    remedy = f"{subject.name} holds only {len(subject)} images: give fewer here or more images there"
                    raise UserError("eval.images", self.images, remedy)

    def blocks(self, subject: Subject) -> int:
        """How many seed blocks a subject's quality is measured on; of stored images, as many as they fill."""
        if isinstance(subject, StoredImages):
            return min(self.seed_blocks, len(subject) // self.images)
        return self.ddpm_seed_blocks if "@ddpm:" in subject.name else self.seed_blocks


def benchmark(
    subjects: Sequence[Subject],
    *,
    reference: Reference,
    shown: Tensor | IndexedImages | None,
    training_images: Tensor | None,
    training_features: Tensor | None = None,
    classes: RealClasses | None = None,
    extractor: Extractor,
    settings: BenchmarkSettings,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None] = print,
    shares: Shares = ALONE,
) -> dict[str, Any]:
    """Measure all subjects, write everything into `folder` and return the value of its benchmark.json.

    shown: real images uint8 [N, C, H, W] for grids/real.png. training_images: uint8 [N, C, H, W] for the
    near-copies; without them there are none in the results. training_features: [M, D] float32 of all or some of them,
    for the near-copies in features. classes: of the reference, for samplers that are asked for one.
    shares: of this process and those that `assist` it.
    Writes samplers/SLUG.json, grids/SLUG.png, grids/real.png, neighbours.json and .png, benchmark.json.
    UserError: settings that do not fit the data; a sampler that returns NaN; a cache that cannot be written.
    """
    settings.check(reference, subjects)
    for part in ("samplers", "grids"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{SCRATCH}*"):  # of a call that was killed
        remove(stale)
    training = None if training_images is None else TrainingImages(training_images, settings.mirrored, device)
    in_features = None if training_features is None else TrainingFeatures(training_features, device)
    real, level = reference.features, None
    if real is not None:  # the images that mere statistics are of, nobody has
        level = floor(load_halves(real, settings.kid_subset_size), settings.images, len(real))
    run = _Run(
        subjects=subjects,
        extractor=extractor,
        training=training,
        classes=classes,
        settings=settings,
        folder=folder,
        device=device,
        say=say,
        shares=shares,
        judge=Judge(
            reference=reference,
            floor_fd=None if level is None else level["fd"],
            kid_subset_size=settings.kid_subset_size,
            logits=extractor.logits,
            training=in_features,
        ),
        protocol=Protocol(
            reference={key: reference.provenance[key] for key in ("dataset", "split", "count", "sha256")},
            extractor=extractor.to_json(),
            images=settings.images,
            encoding=ENCODING,
        ),
    )
    if shown is not None:
        picked = torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))[:64]
        save_grid(folder / "grids" / "real.png", indexed(shown).take(picked))
    for subject in subjects:
        run.quality(subject)
    run.timing()
    results = [run.result(subject) for subject in subjects]
    value = {
        "format": 1,
        "protocol": run.protocol.to_json(),
        "metric_name": extractor.metric_name,
        "extractor": {**extractor.to_json(), "dim": extractor.dim},
        "reference": reference.provenance,
        "floor": level,
        "copies": training
        and {
            "threshold": training.threshold,
            "real_share": SHARE,
            "how": training.how,
            "in_features": in_features and {"threshold": in_features.threshold, "how": in_features.how},
        },
        **_of_classes(classes),
        "environment": environment(device),
        "sampler_order": [subject.name for subject in subjects],
        "speed": speed_ratios(results),
    }
    write_json(folder / "benchmark.json", value)
    return value


def assist(
    subjects: Sequence[Subject], extractor: Extractor, settings: BenchmarkSettings, name: str, seed: int, shares: Shares
) -> None:
    """In a process beside one that is in `benchmark`: do this one's share of the seed block that was called out."""
    subject = next(subject for subject in subjects if subject.name == name)
    each_batch(_block(subject, seed, settings), extractor, settings.batch_size, name, lambda *_: None, shares)


def _block(subject: Subject, seed: int, settings: BenchmarkSettings) -> ImageSource:
    """The images of a seed block."""
    if isinstance(subject, StoredImages):
        return subject.block(seed, settings.images)
    return Generated(subject, seed, settings.images, settings.batch_size)


def _of_classes(classes: RealClasses | None) -> dict[str, Any]:
    """What a benchmark says of the classes; nothing where there are none."""
    if classes is None:
        return {}
    names, real = list(classes.names), classes.real_agreement
    return {"classes": {"names": names, "neighbours": NEIGHBOURS, "real_agreement": real}}


def _asked(subject: Subject, count: int) -> Tensor | None:
    """The classes that the images of a seed block were asked to be of, [count]; None: of none."""
    return None if isinstance(subject, StoredImages) else labels_for(subject, 0, count)


def _by_class(asked: Tensor | None) -> Tensor | None:
    """Eight images in a row of each of the first classes; None: nothing was asked, or there are fewer of one."""
    if asked is None:
        return None
    rows = [(asked == number).nonzero().flatten()[:8] for number in range(min(int(asked.max()) + 1, MOST_ROWS))]
    return torch.cat(rows) if all(len(row) == 8 for row in rows) else None


def remove_others(folder: Path, subjects: Sequence[Subject]) -> None:
    """Remove what an earlier list of subjects left in a benchmark's folder."""
    known = {"real", *(slug(subject.name) for subject in subjects)}
    for path in [*folder.glob("samplers/*"), *folder.glob("grids/*")]:
        if path.stem not in known:
            path.unlink()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One benchmark in progress: what all subjects share, and their result files."""

    subjects: Sequence[Subject]
    extractor: Extractor
    training: TrainingImages | None
    classes: RealClasses | None
    settings: BenchmarkSettings
    folder: Path
    device: torch.device
    say: Callable[[str], None]
    shares: Shares
    judge: Judge
    protocol: Protocol

    @cached_property
    def neighbours_of(self) -> Subject | None:
        """Whose nearest training images are shown: the first student's, else the first subject's, that is judged."""
        judged = [subject for subject in self.subjects if self.settings.blocks(subject)]
        return next((subject for subject in judged if subject.kind == "student"), judged[0] if judged else None)

    def result(self, subject: Subject) -> dict[str, Any]:
        """The kept result if it is of the same inputs and protocol, else an empty one."""
        path, identity = self._path(subject), self.settings.identities[subject.name]
        try:
            kept = read_sealed(path, KEPT, "measuring it again") if path.is_file() else {"identity": None}
            quality = kept.get("quality")
            same_protocol = quality is None or quality["protocol_hash"] == self.protocol.hash
            if kept["identity"] == identity and same_protocol and not self._lacks_pictures(subject, quality):
                return kept
        except UserError as error:
            self.say(f"WARNING: {error}")
        left_out = "too slow to sample enough images; timed only (eval.ddpm_seed_blocks is 0)"
        return {
            "format": 1,
            "name": subject.name,
            "label": subject.label,
            "kind": subject.kind,
            "nfe": subject.nfe,
            "network_parameters": subject.network_parameters,
            "schedule": [float(value) for value in subject.schedule],
            "identity": identity,
            "quality": None,
            "quality_left_out": None if self.settings.blocks(subject) else left_out,
            "timing": None,
            "cold_start": None,
        }

    def _lacks_pictures(self, subject: Subject, quality: dict[str, Any] | None) -> bool:
        """Whether a subject was measured and its grid is not there, or its neighbours where they are to be shown."""
        if quality is None:
            return False
        path, shown = self.folder / "neighbours.json", None
        if self.training is not None and subject is self.neighbours_of:
            shown = read_json(path).get("sampler") if path.exists() else ""
        return shown not in (None, subject.name) or not (self.folder / "grids" / f"{slug(subject.name)}.png").exists()

    def quality(self, subject: Subject) -> None:
        """Measure the seed blocks that are not measured yet, writing the result after each."""
        settings, result = self.settings, self.result(subject)
        for seed in range(len(result["quality"]["seeds"]) if result["quality"] else 0, settings.blocks(subject)):
            source, what = _block(subject, seed, settings), f"{subject.label}, seed {seed}"
            self.shares.call(subject.name, seed)
            with generated(source, self.extractor, settings.batch_size, self.folder, what, self.shares) as block:
                images, features = block
                metrics = self._metrics(subject, seed, images, features)
            result["quality"] = add_block(result["quality"], self.protocol, seed, metrics)
            if seed == 0:
                result["by_class"] = _by_class(_asked(subject, settings.images)) is not None
            write_json(self._path(subject), sealed(result))
            kid = f", KID {metrics['kid']:.5f}" if "kid" in metrics else ""
            self.say(f"{subject.label}, seed {seed}: FD {metrics['fd']:.3f}{kid}")

    def _metrics(self, subject: Subject, seed: int, images: Tensor, features: Tensor) -> dict[str, float]:
        """The metrics of a seed block; of the first one the pictures are written too."""
        check_varied(subject.name, images)
        metrics = self.judge(features) | {"full_range": full_range_share(images)}
        asked = _asked(subject, len(images))
        if self.classes is not None and asked is not None:
            metrics |= self.classes(features, asked)
        if self.training is not None:
            neighbours = self.training.nearest(images)
            metrics["copies"] = neighbours.share(self.training.threshold)
            if seed == 0 and subject is self.neighbours_of:
                save_neighbours(self.folder, subject.name, images, neighbours, self.training)
        if seed == 0:
            picked = _by_class(asked)
            shown = images[:64] if picked is None else images[picked]
            save_grid(self.folder / "grids" / f"{slug(subject.name)}.png", shown)
        return metrics

    def timing(self) -> None:
        """Time the samplers that have no time yet, and with them the cheapest one that has, as an anchor.

        The new times are scaled by the anchor's time then over its time now, so that all of a table are of one pace.
        """
        here = environment(self.device)
        conditions = {key: here[key] for key in CONDITIONS} | {"batch_sizes": list(self.settings.limits.batch_sizes)}
        timed = [subject for subject in self.subjects if subject.name not in self.settings.repeats]
        samplers = [subject for subject in timed if not isinstance(subject, StoredImages)]
        results = {sampler: self.result(sampler) for sampler in samplers}
        times = {sampler: result["timing"] for sampler, result in results.items() if result["timing"]}
        if any(time.get("conditions") != conditions for time in times.values()):
            times = {}
        missing = [sampler for sampler in samplers if sampler not in times]
        if not missing:
            return
        anchors = sorted(times, key=lambda sampler: times[sampler]["ms_per_image"])[:1]
        self.say(f"Timing {len(missing)} samplers in turns" + "".join(f", and again {each.label}" for each in anchors))
        clocks, pace = measure([*missing, *anchors], self.device, self.settings.limits), None
        for anchor in anchors:  # one or none
            factor = times[anchor]["ms_per_image"] / clocks.pop().to_json()["ms_per_image"]
            pace = {"anchor": anchor.name, "factor": factor}
        for clock in clocks:
            timing = clock.to_json(pace) | {"conditions": conditions}
            write_json(self._path(clock.sampler), sealed(results[clock.sampler] | {"timing": timing}))
            self.say(
                f"{clock.sampler.label}: {timing['latency_ms']['median']:.1f} ms for one image, "
                f"{timing['throughput']['images_per_second']:.1f} images/s"
            )

    def _path(self, subject: Subject) -> Path:
        return self.folder / "samplers" / f"{slug(subject.name)}.json"
