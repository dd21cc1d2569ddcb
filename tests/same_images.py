"""What something else than torch made of a student, beside the student's own images."""

import numpy as np
import torch

from fewstep.eval.images import labels_for
from fewstep.eval.noise import KeyedNoise
from fewstep.pipeline.export.parity import LARGEST_ERROR_STEPS
from fewstep.pipeline.sampling.models import student_sampler


def expect_images(pixels, student, steps, seed, labels=None):
    """uint8 [N, H, W] of one channel are a student's images: as far from its floats as rounding takes them."""
    sampler, number = student_sampler(student, steps), len(pixels)
    with torch.inference_mode():
        noise = KeyedNoise(sampler.shape, seed, 0, number)
        floats = sampler.sample(noise, labels_for(sampler, 0, number, labels))[:, 0].double().numpy()
    away = np.abs(pixels - (127.5 * floats + 127.5).clip(0, 255)).max()  # of 255 levels
    assert away < 0.5 + 127.5 * LARGEST_ERROR_STEPS
