"""A small class-conditional student of random weights, and what stock diffusers makes of its folder."""

from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from fewstep.eval.noise import KeyedNoise
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.load import load_student
from fewstep.students.save import save_student
from fewstep.teachers.network import build_unet

CLASSES = 3
OPTIONS: dict[str, Any] = {"channels": (16, 16), "layers_per_block": 1, "attention": (False, True), "norm_groups": 8}


def conditional_student():
    """A consistency model of CLASSES classes for 1x8x8 images, in evaluation mode."""
    unet = build_unet((1, 8, 8), **OPTIONS, dropout=0.0, seed=5, classes=CLASSES)
    return ConsistencyModel(unet).eval().requires_grad_(False)


def saved(folder):
    """The student in `folder`, as it is read from there."""
    save_student(conditional_student(), folder)
    return load_student(folder)


def stock_images(folder, steps, seed, labels):
    """float32 [B, C, H, W] in [-1, 1] of the stock pipeline, of image i of a seed with label i."""
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    student = load_student(folder)
    generators = list(KeyedNoise(student.space.shape, seed, 0, len(labels)).generators)
    call = {"class_labels": torch.tensor(labels), "output_type": "np", **student.stock_call(steps)}
    images = pipeline(batch_size=len(labels), generator=generators, **call).images
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2) * 2 - 1
