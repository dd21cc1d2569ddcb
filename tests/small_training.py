"""A training of twelve steps: a small network, an objective over it, and what a job of them leaves."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from fewstep.eval.images import TensorImages
from fewstep.files import sha256_file
from fewstep.pipeline.config.training import TrainConfig
from fewstep.pipeline.data.stored import StoredData
from fewstep.pipeline.training.job import TrainingJob
from fewstep.pipeline.training.loop import train
from fewstep.pipeline.training.randomness import TEACHER
from fewstep.teachers.interfaces import Evaluations, LossTerms, Objective, randn

CONFIG = TrainConfig(
    kimg=0.096,
    batch_size=8,
    slices=1,
    learning_rate=1e-2,
    warmup_kimg=0.016,
    decay="cosine",
    betas=(0.9, 0.99),
    weight_decay=0.01,
    ema_halflife_kimg=0.05,
    gradient_clip=1.0,
    precision="fp32",
    checkpoint_kimg=0.016,
    log_every=1,
)


def stored(images, labels=None):
    """Training images in memory, uint8 [N, C, H, W]."""
    provenance = {"shape": list(images.shape[1:])}
    return StoredData(pixels=TensorImages(images), labels=labels, class_names=None, provenance=provenance)


class Denoising(Objective):
    """A two-layer network with dropout predicts an image from a noisy one; `after` is called with each step done."""

    cost = Evaluations(student=1)

    def __init__(self, after=lambda step: None, dropout=0.3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            layers = (nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(4, 1, 3, padding=1))
            self.network = nn.Sequential(*layers)
        self.after = after

    def forward(self, batch, progress, generator):
        noise = randn(tuple(batch.images.shape), generator, batch.images.device)
        loss = (self.network(batch.images + noise) - batch.images).square().mean(dim=(1, 2, 3))
        return LossTerms(loss=loss, sigma=torch.ones(len(loss)), log={"first": loss[0].detach()})

    def update(self, progress):
        self.after(progress.step + 1)


class NowAndThen(Denoising):
    """With a second network, trained at each second step alone."""

    partial = True

    def __init__(self, after=lambda step: None):
        super().__init__(after)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            self.other = nn.Linear(16, 1)

    def parameter_groups(self):
        return [*super().parameter_groups(), {"params": list(self.other.parameters())}]

    def forward(self, batch, progress, generator):
        terms = super().forward(batch, progress, generator)
        if progress.step % 2 == 0:
            return terms
        return replace(terms, loss=terms.loss + (self.other(batch.images.flatten(1)).squeeze(1) - 1).square())


class Training:
    """Training in a folder of its own: `run()` trains, the other methods read what it left."""

    def __init__(self, folder: Path, **changes):
        images = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        self.job = TrainingJob(
            title="teacher",
            stream=TEACHER,
            data=stored(images),
            labelled=False,
            workers=0,
            horizontal_flip=True,
            config=CONFIG.model_copy(update=changes),
            slices=changes.get("slices", 1),
            parts=range(changes.get("slices", 1)),
            seed=11,
            config_hash="c0ffee",
            checkpoints=folder / "checkpoints",
            log=folder / "teacher.jsonl",
            tensorboard=folder / "tensorboard",
        )

    def run(self, objective=None, interrupted_at=None, **options):
        """Train to the end, or until SIGTERM comes in step `interrupted_at`; returns the (first) averaged network."""
        objective = objective or Denoising(**options)
        if interrupted_at is None:
            return next(iter(train(objective, self.job, Accelerator(cpu=True)).values()))
        objective.after = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == interrupted_at else None
        with pytest.raises(SystemExit) as left:
            train(objective, self.job, Accelerator(cpu=True))
        assert left.value.code == 143
        return None

    def checkpoint(self, step):
        return self.job.checkpoints / f"step-{step:09d}"

    def hashes(self, step):
        """{file: sha256} of a checkpoint's tensors."""
        return {path.name: sha256_file(path) for path in self.checkpoint(step).glob("*.safetensors")}

    def trace(self):
        """The log's records, without those of the clock."""
        records = [json.loads(line) for line in self.job.log.read_text().splitlines()]
        return [
            {name: value for name, value in record.items() if name not in ("seconds", "kimg_per_s")}
            for record in records
        ]
