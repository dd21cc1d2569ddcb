"""Ways to run the trained networks that give the same training: compiled, with less memory, or with what is kept."""

import ctypes
import os
import shutil
from functools import cache

import torch
from diffusers import ModelMixin

from fewstep.errors import UserError
from fewstep.pipeline.config.training import TrainConfig
from fewstep.teachers.interfaces import Objective

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT, KEPT_BY_OLDER = 1 << 30, 1 << 25  # bytes


def set_up(objective: Objective, config: TrainConfig, title: str, device: torch.device) -> None:
    """Let an objective's diffusers networks be compiled and compute activations again, as configured.

    On a processor the memory of a step stays with the process for the next one.

    UserError: they are to be compiled for a processor and there is no C++ compiler.
    """
    if device.type == "cpu":
        _keep_memory()
    networks = [each for each in objective.modules() if isinstance(each, ModelMixin)]
    if config.gradient_checkpointing:
        for network in networks:
            network.enable_gradient_checkpointing()
    if config.compile:
        compiler = os.environ.get("CXX", "g++")
        if device.type == "cpu" and shutil.which(compiler) is None:
            raise UserError(f"{title}.train.compile", True, f"needs a C++ compiler, and there is no {compiler}")
        for network in networks:
            # dropout by torch's own generators: both points of a consistency loss have one mask
            network.compile(options={"fallback_random": True})


@cache
def _keep_memory() -> None:
    """Have glibc keep the memory of freed activations, which it gives back and the system fills with zeros again."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    # older ones refuse to keep so large a piece; without this one the other would stop the growth of what they do keep
    if mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, KEPT_BY_OLDER):
        mallopt(M_TRIM_THRESHOLD, KEPT)
