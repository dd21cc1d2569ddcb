"""A generator in an .onnx file as a Sampler.

The interface is that of an exported student: the input `noise` float32 [B, C, H, W], standard normal, and of several
steps `noise_2` and so on of that shape; of a class-conditional one `labels` int64 [B] too, last; one output, images
float32 [B, C, H, W] in [-1, 1] or uint8 [B, H, W, C]. The noise levels, the scalings and the timesteps are inside the
graph; how many classes there are stands in what it says of itself.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError, unreadable
from fewstep.eval.images import check_size, labels_for
from fewstep.eval.interfaces import Noise
from fewstep.files import read_json, sha256_file, sha256_json
from fewstep.pipeline.export.names import PARITY
from fewstep.pipeline.export.provenance import of_graph, stated_classes, stated_steps
from fewstep.pipeline.sampling.grammar import in_steps
from fewstep.students.graph import LABELS

INPUT = "noise"
OPTIMIZATIONS = ("all", "extended", "basic")
"""Of onnxruntime's graph optimizations: each has those of the ones after it."""


class OnnxSampler:
    """An ONNX file run by onnxruntime on the processor; UserError where it has another interface."""

    kind = "export"
    networks = ()
    num_classes: int | None = None
    schedule: Sequence[float] = ()
    device = torch.device("cpu")  # where it runs, whatever device the others of a table run on

    def __init__(
        self, name: str, label: str, path: Path, threads: int | None = None, optimization: str = "all"
    ) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise UserError(name, None, "needs onnx and onnxruntime: pip install 'fewstep[export]'") from None
        self.name, self._files = name, {path}
        with unreadable(name, "cannot be loaded as an ONNX graph"):
            model = onnx.load(path, load_external_data=False)
            for tensor in _tensors(model, onnx.TensorProto):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    self._files.add(_external(name, path, tensor))
            self.network_parameters = sum(prod(tensor.dims) for tensor in model.graph.initializer)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads or torch.get_num_threads()
            options.graph_optimization_level = getattr(
                onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{optimization.upper()}"
            )
            options.log_severity_level = 4  # what is wrong is in the exception
            options.add_session_config_entry("session.force_spinning_stop", "1")  # or it slows what runs between calls
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in self._session.get_inputs()]
        self._noises = names[:-1] if names[-1:] == [LABELS] else names
        self.shape = self._checked_shape()
        check_size(name, self.shape)
        facts = of_graph(model)
        self.num_classes = known_classes(name, stated_classes(facts)) if self._noises != names else None
        self.nfe = stated_steps(facts) or len(self._noises)
        self.label = f"{label}, {in_steps(self.nfe)}"
        with unreadable(name, "fails on a batch of 2"):
            image = self._run([torch.zeros(2, *self.shape) for _ in self._noises], labels_for(self, 0, 2))
        channels, height, width = self.shape
        if (image.shape, image.dtype) not in [
            ((2, *self.shape), np.dtype("float32")),
            ((2, height, width, channels), np.dtype("uint8")),
        ]:
            remedy = f"gives {image.dtype.name} {image.shape} for two images {self.shape}; needed is float32, as large"
            raise UserError(name, None, remedy)

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1] on the CPU. UserError: labels that are not of its classes."""
        labels = checked_labels(self.name, labels, self.num_classes)
        return as_floats(torch.from_numpy(self._run([noise.draw().cpu() for _ in self._noises], labels)))

    def _run(self, noises: Sequence[Tensor], labels: Tensor | None) -> Any:  # noqa: ANN401 - an array
        feeds = {name: x.numpy() for name, x in zip(self._noises, noises, strict=True)}
        if labels is not None:
            feeds[LABELS] = labels.cpu().numpy()
        return self._session.run(None, feeds)[0]

    def identity(self) -> str:
        """A hash of the graph and of the weights that lie beside it."""
        return sha256_json({file.name: sha256_file(file) for file in self._files})

    def _checked_shape(self) -> tuple[int, int, int]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        noises, labels = inputs[: len(self._noises)], inputs[len(self._noises) :]
        fits = are_noises(self._noises) and {each.type for each in noises} == {"tensor(float)"} and len(outputs) == 1
        fits &= all(each.type == "tensor(int64)" and len(each.shape) == 1 for each in labels)
        shape = inputs[0].shape if fits and all(each.shape == inputs[0].shape for each in noises) else ()
        if len(shape) != 4 or isinstance(shape[0], int) or not all(isinstance(side, int) for side in shape[1:]):
            remedy = f"has the inputs {found} and {len(outputs)} outputs; needed is one float input {INPUT!r}"
            raise UserError(self.name, None, f"{remedy} [B, C, H, W] with a free B, and one output")
        return shape[1], shape[2], shape[3]


def session_of(path: Path) -> tuple[int | None, str]:
    """Threads and optimization with which an exported graph was fastest, by the parity.json beside it; see there."""
    with suppress(UserError):
        for each in read_json(path.parent / PARITY, {"files": [{"file": str}]})["files"]:
            session = each.get("session")
            if each["file"] == path.name and isinstance(session, dict) and session.get("optimization") in OPTIMIZATIONS:
                threads = session.get("threads")
                fits = isinstance(threads, int) and 0 < threads <= torch.get_num_threads()
                return threads if fits else None, session["optimization"]
    return None, OPTIMIZATIONS[0]


def are_noises(names: Sequence[str]) -> bool:
    """Whether inputs are noise, or noise and one of each later step that draws one: noise, noise_2, noise_4."""
    found = [re.fullmatch(rf"{INPUT}_([2-9]|[1-9]\d+)", name) for name in names[1:]]
    steps = [int(each[1]) for each in found if each]
    return names[:1] == [INPUT] and len(steps) == len(found) and steps == sorted(set(steps))


def known_classes(name: str, classes: int | None) -> int:
    """How many classes a file with labels says that it has; UserError where it does not."""
    if classes is None:
        remedy = f"takes {LABELS!r} and does not say of how many classes, as files of fewstep export do (num_classes)"
        raise UserError(name, None, remedy)
    return classes


def checked_labels(name: str, labels: Tensor | None, num_classes: int | None) -> Tensor | None:
    """Labels int64 [B] of a file's classes, None where it has none; UserError: there are none, or they are others."""
    if num_classes is None:
        return None
    if labels is None or bool(((labels < 0) | (labels >= num_classes)).any()):
        given = None if labels is None else labels.tolist()
        raise UserError(f"{name}: labels", given, f"this student is class-conditional: give 0 to {num_classes - 1}")
    return labels


def as_floats(images: Tensor) -> Tensor:
    """Images of either output as float32 [B, C, H, W] in [-1, 1], of which `to_uint8` makes the same pixels."""
    return images.permute(0, 3, 1, 2) / 127.5 - 1 if images.dtype == torch.uint8 else images


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
