"""A one-step generator in an .onnx file as a Sampler.

The interface is that of an exported student: one input `noise` float32 [B, C, H, W], standard normal, one output of the
same shape, an image in [-1, 1]; the noise level, the scalings and the timestep are inside the graph.
"""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError, unreadable
from fewstep.eval.images import check_size
from fewstep.eval.interfaces import Noise
from fewstep.files import sha256_file, sha256_json

INPUT = "noise"


class OnnxSampler:
    """An ONNX file run by onnxruntime on the processor; UserError where it has another interface."""

    kind = "export"
    nfe = 1
    networks = ()
    num_classes: int | None = None
    schedule: Sequence[float] = ()
    device = torch.device("cpu")  # where it runs, whatever device the others of a table run on

    def __init__(self, name: str, label: str, path: Path) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise UserError(name, None, "needs onnx and onnxruntime: pip install 'fewstep[export]'") from None
        self.name, self.label, self._files = name, f"{label}, 1 step", {path}
        with unreadable(name, "cannot be loaded as an ONNX graph"):
            model = onnx.load(path, load_external_data=False)
            for tensor in _tensors(model, onnx.TensorProto):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    self._files.add(_external(name, path, tensor))
            self.network_parameters = sum(prod(tensor.dims) for tensor in model.graph.initializer)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 4  # what is wrong is in the exception
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.shape = self._checked_shape()
        check_size(name, self.shape)
        with unreadable(name, "fails on a batch of 2"):
            image = self._session.run(None, {INPUT: torch.zeros(2, *self.shape).numpy()})[0]
        if image.shape != (2, *self.shape) or image.dtype.name != "float32":
            remedy = f"gives {image.dtype.name} {image.shape} for two images {self.shape}; needed is float32, as large"
            raise UserError(name, None, remedy)

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1] on the CPU; `labels` is not used."""
        return torch.from_numpy(self._session.run(None, {INPUT: noise.draw().cpu().numpy()})[0])

    def identity(self) -> str:
        """A hash of the graph and of the weights that lie beside it."""
        return sha256_json({file.name: sha256_file(file) for file in self._files})

    def _checked_shape(self) -> tuple[int, int, int]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        fits = len(inputs) == len(outputs) == 1 and inputs[0].name == INPUT and inputs[0].type == "tensor(float)"
        shape = inputs[0].shape if fits else ()
        if len(shape) != 4 or isinstance(shape[0], int) or not all(isinstance(side, int) for side in shape[1:]):
            remedy = f"has the inputs {found} and {len(outputs)} outputs; needed is one float input {INPUT!r}"
            raise UserError(self.name, None, f"{remedy} [B, C, H, W] with a free B, and one output")
        return shape[1], shape[2], shape[3]


def _tensors(message: Any, kind: type) -> Iterator[Any]:  # noqa: ANN401 - protobuf's classes are made at run time
    """Every tensor of a protobuf message: of graphs, of graphs in attributes of nodes, of functions."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item, kind)


def _external(name: str, path: Path, tensor: Any) -> Path:  # noqa: ANN401 - as above
    """The file of a tensor's data; UserError unless it is beside the graph, itself and no link to another."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    file = path.parent / location
    if not location or Path(location).name != location or file.is_symlink() or not file.is_file():
        remedy = f"has weights in {location!r}, which is no file beside it: put it there, or save the graph in one file"
        raise UserError(name, None, remedy)
    return file
