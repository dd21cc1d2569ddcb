"""A fresh teacher: diffusers' UNet2DModel and DDPMScheduler."""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import DDPMScheduler, UNet2DModel

Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
Prediction = Literal["epsilon", "v_prediction", "sample"]


def build_unet(
    shape: tuple[int, int, int],
    *,
    channels: Sequence[int],
    layers_per_block: int,
    attention: Sequence[bool],
    norm_groups: int,
    dropout: float,
    seed: int,
    classes: int | None = None,
    fourier: bool = False,
) -> UNet2DModel:
    """A UNet for images of `shape` (C, H, W), H = W, with weights drawn from `seed`.

    `channels` and `attention` have one entry a resolution level, the finest first. Attention has one head (Ho 2020):
    with diffusers' heads of 8 channels a CPU spends a third of its time there. `classes`: rows of its table of classes;
    None: it is unconditional. The time embedding is positional, as a stock ConsistencyModelPipeline needs, or
    `fourier`, with which diffusers divides the output by the noise level, as a score network of the VE family does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            norm_num_groups=norm_groups,
            dropout=dropout,
            attention_head_dim=None,
            num_class_embeds=classes,
            time_embedding_type="fourier" if fourier else "positional",
        )


def build_scheduler(num_train_timesteps: int, schedule: Schedule, prediction: Prediction) -> DDPMScheduler:
    """The DDPM schedule: `linear` is beta from 1e-4 to 0.02 (Ho 2020); x0 is clipped to [-1, 1] in sampling."""
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=schedule,
        prediction_type=prediction,
        clip_sample=True,
    )
