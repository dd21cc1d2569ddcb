"""A one-step generator in a .pt2 file (torch.export) as a Sampler; the interface is that of graph_sampler."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UserError, first_line, unreadable
from fewstep.eval.images import check_size
from fewstep.eval.interfaces import Noise
from fewstep.pipeline.sampling.pt2_archive import read_program


class ProgramSampler:
    """A program of torch.export run by torch on `device`, wherever it was exported.

    UserError: it cannot be read safely, has another interface, or fails on one or two images.
    """

    kind = "export"
    nfe = 1
    num_classes: int | None = None
    schedule: Sequence[float] = ()

    def __init__(self, name: str, label: str, path: Path, device: torch.device) -> None:
        program, self.shape = read_program(name, path, device)
        check_size(name, self.shape)
        self.name, self.label, self._device = name, f"{label}, 1 step", device
        self.network_parameters = sum(weight.numel() for weight in program.state_dict.values())
        with unreadable(name, "cannot be made into a module"):
            self._module = program.module()
        self.networks = (self._module,)
        for batch in (1, 2):
            self._check_output(batch)

    @torch.inference_mode()
    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1] on the device; `labels` is not used.

        UserError: the program fails, as one does that was exported for fewer images at a time.
        """
        return self._run(noise.draw().to(self._device))

    def _run(self, x: Tensor) -> Tensor:
        try:
            return self._module(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an operator may raise anything
            remedy = "; eval.batch_size and eval.throughput_batch_sizes set smaller ones" if len(x) > 2 else ""
            raise UserError(self.name, None, f"fails on a batch of {len(x)} ({first_line(error)}){remedy}") from None

    @torch.inference_mode()
    def _check_output(self, batch: int) -> None:
        """Zeros through the program: the output must have the input's shape and type."""
        x = torch.zeros(batch, *self.shape, device=self._device)
        image = self._run(x)
        if not isinstance(image, Tensor) or image.shape != x.shape or image.dtype != x.dtype:
            found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            remedy = f"gives {found} for {tuple(x.shape)}; needed is float32, as large"
            raise UserError(self.name, None, remedy.replace("torch.", ""))
