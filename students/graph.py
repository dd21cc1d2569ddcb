"""A student at a fixed number of steps as one graph: noise in, images out, with every level and scaling inside."""

from types import FunctionType, MethodType
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from fewstep.students.interfaces import Student

GUARD = 64
"""Images from which on some of diffusers' blocks take another way."""
MOST_IMAGES = 1024
"""Of one call of a graph whose batch is bounded (torch.export)."""
LABELS = "labels"
"""The name of the input that takes classes."""


class Generator(nn.Module):
    """What is exported: images of unit noise, with nothing left to be chosen.

    `forward` takes the noise of each step that draws one, float32 [B,C,H,W] standard normal, and of a class-conditional
    student `labels`, int64 [B] in 0..num_classes - 1. It gives images: float32 [B,C,H,W] in [-1, 1], or with `pixels`
    uint8 [B,H,W,C], rounded as `fewstep.eval.images.to_uint8` does. The network is a copy. What it makes of the time is
    the same for all images of a step: it is computed here once, and the weights that make it are left behind.
    """

    def __init__(self, student: Student, steps: int, *, pixels: bool = False) -> None:
        super().__init__()
        self.course, self.shape, self.pixels = student.fixed_steps(steps), student.space.shape, pixels
        self.num_classes = student.space.num_classes
        self.network = student.clone().network.cpu().float().eval().requires_grad_(False)
        _take_out_batch_guards(self.network)
        self._embedded = _embed(self.network, [step.time for step in self.course])

    @property
    def inputs(self) -> list[str]:
        """Their names: noise, noise_2, ... of the later steps that draw one, and labels last, where it has classes."""
        drawing = [index for index, step in enumerate(self.course, start=1) if step.noise]
        noises = ["noise" if index == 1 else f"noise_{index}" for index in drawing]
        return noises if self.num_classes is None else [*noises, LABELS]

    def forward(self, noise: Tensor, *later: Tensor, labels: Tensor | None = None) -> Tensor:
        """See the class."""
        left, x = iter(later), self.course[0].noise * noise
        of = {} if self.num_classes is None else {"class_labels": labels}
        for index, step in enumerate(self.course):
            if index and step.noise:
                x = x + step.noise * next(left)
            for each in self._embedded:
                each.step = index
            x = step.skip * x + step.out * self.network(step.scale * x, step.time, return_dict=False, **of)[0]
            x = x.clamp(-1, 1) if step.clamped else x
        return (x * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1) if self.pixels else x


def _take_out_batch_guards(network: nn.Module) -> None:
    """Let blocks be traced for any batch: from 64 images on diffusers' make their input contiguous, and do no more."""
    for block in network.modules():
        code = type(block).forward.__code__
        if isinstance(block, ResnetBlock2D | Upsample2D) and GUARD in code.co_consts:
            constants = tuple(MOST_IMAGES + 1 if value == GUARD else value for value in code.co_consts)
            forward = FunctionType(code.replace(co_consts=constants), type(block).forward.__globals__)
            forward.__defaults__ = type(block).forward.__defaults__
            block.forward = MethodType(forward, block)


class _Embedded(nn.Module):
    """In the place of a layer that reads the time: what it gives [steps, D], one row for all images of a step."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.step, self.rows = 0, nn.Buffer(rows)

    def forward(self, _: Tensor) -> Tensor:
        """[1, D] of the step that is being made."""
        return self.rows[self.step : self.step + 1]


@torch.no_grad()
def _embed(network: Any, times: list[float]) -> list[_Embedded]:  # noqa: ANN401 - a UNet: nn.Module hides its layers
    """Put constants into the places of a UNet's layers that read the time alone, one row for each of `times`.

    To the time embedding of a conditional one that of the class is added: its blocks read both, and stay as they are.
    """
    embedding = network.time_embedding(network.time_proj(torch.tensor(times)))
    network.time_proj, network.time_embedding = nn.Identity(), _Embedded(embedding)
    placed = [network.time_embedding]
    if network.class_embedding is not None:
        return placed
    for block in network.modules():
        if isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None:
            given = embedding if block.skip_time_act else block.nonlinearity(embedding)
            placed.append(_Embedded(block.time_emb_proj(given)))
            block.add_module("time_emb_proj", placed[-1])
    return placed
