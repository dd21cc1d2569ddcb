"""Writing a generator as a file of each format: ONNX in three precisions, and a program of torch.export."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError, first_line, unreadable
from fewstep.pipeline.export.provenance import KEY, header
from fewstep.students.graph import LABELS, MOST_IMAGES, Generator

OPSET = 20
CALIBRATION = 64
"""Images whose activations give the ranges of int8."""


def write_onnx(generator: Generator, path: Path, facts: Mapping[str, Any]) -> None:
    """The graph with float32 weights in one file, a free batch, `facts` in its metadata and no path of this machine."""
    onnx = _need("onnx")
    _need("onnxscript")
    with _quiet(), unreadable("--formats", "onnx: the student's network cannot be written as a graph"):
        noises, labels = _example(generator)
        program = torch.onnx.export(
            generator,
            noises,
            kwargs=labels,
            dynamo=True,
            input_names=generator.inputs,
            output_names=["image"],
            dynamic_shapes=_free_batch(generator),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for each in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        each.ClearField("metadata_props")  # where each node came from: lines of source on this machine
        each.ClearField("doc_string")
    _describe(model, facts)
    onnx.save(model, path)


def write_half(source: Path, path: Path, facts: Mapping[str, Any]) -> None:
    """The graph of `source` with weights kept as float16, half as long, and cast to float32 where they are used.

    The arithmetic stays float32: it runs wherever the graph runs, as fast. A runtime casts once, when it loads.
    """
    onnx = _need("onnx")
    model = onnx.load(source)
    casts = []
    for weight in model.graph.initializer:
        name = weight.name
        if weight.data_type != onnx.TensorProto.FLOAT or np.prod(weight.dims) < 16:
            continue
        values = onnx.numpy_helper.to_array(weight).astype(np.float16)
        if not np.isfinite(values).all():
            raise UserError(name, None, "has a weight beyond the range of float16 (65,504): leave out onnx-fp16")
        weight.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    _describe(model, facts)
    onnx.save(model, path)


def write_int8(source: Path, path: Path, feeds: list[dict[str, np.ndarray]], facts: Mapping[str, Any]) -> None:
    """The graph of `source` with convolutions and matrix products in int8, by onnxruntime's static quantisation.

    Weights have a range for each channel, activations one that covers what they are for `feeds`, batches of the
    sampler's own noise, and of labels, by name of input. What reads the image and what makes it stay float32.
    """
    onnx = _need("onnx")
    _need("onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Feeds(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.left, None)

    prepared = path.with_suffix(".prepared")
    with _quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        quantize_static(
            str(prepared),
            str(path),
            Feeds(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[convolutions[0], convolutions[-1]],
        )
    prepared.unlink()
    model = onnx.load(path)
    _describe(model, facts)
    onnx.save(model, path)


def write_program(generator: Generator, path: Path, facts: Mapping[str, Any]) -> None:
    """The .pt2 of torch.export, for batches of 1 to MOST_IMAGES."""
    torch.export.save(_program(generator), path, extra_files={f"{KEY}.json": header(facts)[KEY]})


def write_package(generator: Generator, path: Path, facts: Mapping[str, Any]) -> None:
    """The .pt2 that AOTInductor compiles for this machine's processor; it needs a C++ compiler and about a minute.

    UserError: it cannot be compiled here.
    """
    program = _program(generator)
    options = {"aot_inductor.metadata": header(facts)}
    try:
        with _quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:  # whatever the compiler and what surrounds it raise
        raise UserError("--formats", "aoti", f"cannot be compiled on this machine ({first_line(error)})") from None


def _program(generator: Generator) -> torch.export.ExportedProgram:
    with _quiet(), unreadable("--formats", "pt2: the student's network cannot be written as a program"):
        shapes = _free_batch(generator, most=MOST_IMAGES)
        program = torch.export.export(generator, *_example(generator), dynamic_shapes=shapes)
    for node in program.graph.nodes:  # where each came from: lines of source on this machine
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    return program


def _example(generator: Generator) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The noises and, by name, the labels of a batch of 2: one of 1 would be taken for a constant."""
    noises = tuple(torch.zeros(2, *generator.shape) for name in generator.inputs if name != LABELS)
    return noises, {LABELS: torch.zeros(2, dtype=torch.int64)} if LABELS in generator.inputs else {}


def _free_batch(generator: Generator, most: int | None = None) -> tuple[Any, ...]:
    batch = torch.export.Dim("batch", min=1, max=most)
    first, *later = [{0: batch} for name in generator.inputs if name != LABELS]
    labels = [{0: batch}] if LABELS in generator.inputs else []
    return (first, *([tuple(later)] if later else []), *labels)


def _describe(model: Any, facts: Mapping[str, Any]) -> None:  # noqa: ANN401 - a protobuf message
    """Put the facts into a graph's metadata, in the place of those that it had."""
    from fewstep import __version__

    model.producer_name, model.producer_version, model.doc_string = "fewstep", __version__, ""
    model.ClearField("metadata_props")
    for key, value in header(facts).items():
        model.metadata_props.add(key=key, value=value)


def _need(name: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError("--formats", None, f"an .onnx needs {name}: pip install 'fewstep[export]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell of their passes on stdout, in warnings and in the log: only what fails is of interest here."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
