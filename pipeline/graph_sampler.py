"""A one-step generator in an .onnx file as a Sampler.

The interface is that of an exported student: one input `noise` float32 [B, C, H, W], standard normal, one output of the
same shape, an image in [-1, 1]; the noise level, the scalings and the timestep are inside the graph.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError, first_line
from fewstep.eval.interfaces import Noise

INPUT = "noise"


class OnnxSampler:
    """An ONNX file run by onnxruntime on the processor; UserError where it has another interface."""

    kind = "export"
    nfe = 1
    num_classes: int | None = None
    schedule: Sequence[float] = ()
    device = torch.device("cpu")  # where it runs, whatever device the others of a table run on

    def __init__(self, name: str, label: str, path: Path) -> None:
        onnx, runtime = _libraries(name)
        try:
            model = onnx.load(path, load_external_data=False)
            self.network_parameters = sum(prod(tensor.dims) for tensor in model.graph.initializer)
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise UserError(name, None, f"cannot be loaded as an ONNX graph ({first_line(error)})") from None
        self.name, self.label = name, f"{label}, 1 step"
        self.shape = self._checked_shape()
        self._checked_output()

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1] on the CPU; `labels` is not used."""
        return torch.from_numpy(self._session.run(None, {INPUT: noise.draw().cpu().numpy()})[0])

    def _checked_shape(self) -> tuple[int, int, int]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        fits = len(inputs) == len(outputs) == 1 and inputs[0].name == INPUT and inputs[0].type == "tensor(float)"
        shape = inputs[0].shape if fits else ()
        if len(shape) != 4 or isinstance(shape[0], int) or not all(isinstance(side, int) for side in shape[1:]):
            remedy = (
                f"has the inputs {found} and {len(outputs)} outputs; needed is one float input {INPUT!r} [B, C, H, W]"
            )
            raise UserError(self.name, None, f"{remedy} with a free B, and one output")
        return shape[1], shape[2], shape[3]

    def _checked_output(self) -> None:
        """One image of zeros through the graph: its output must have the input's shape and type."""
        image: Any = self._session.run(None, {INPUT: torch.zeros(2, *self.shape).numpy()})[0]
        if image.shape != (2, *self.shape) or image.dtype.name != "float32":
            remedy = f"gives {image.dtype.name} {image.shape} for two images {self.shape}; needed is float32, as large"
            raise UserError(self.name, None, remedy)


def _libraries(name: str) -> tuple[Any, Any]:
    """onnx and onnxruntime, which are extras."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise UserError(name, None, "needs onnx and onnxruntime: pip install 'fewstep[export]'") from None
    return onnx, onnxruntime
