"""An ONNX file as a subject: its images, and the interfaces that are refused."""

import numpy as np
import pytest
import torch
from small_conditional import CLASSES, conditional_student, saved, stock_images

from fewstep.errors import UserError
from fewstep.eval.images import Generated
from fewstep.eval.noise import KeyedNoise
from fewstep.pipeline.export.formats import write_onnx
from fewstep.pipeline.sampling.onnx import OnnxSampler
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.students.graph import Generator

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
SHAPE = ("batch", 1, 8, 8)


def graph(path, *, name="noise", kind=FLOAT, shape=SHAPE, operation="Tanh", outputs=("image",), second=False):
    """Write a graph that halves its input and applies `operation`."""
    helper = onnx.helper
    half = onnx.numpy_helper.from_array(np.array([0.5], np.float64 if kind == DOUBLE else np.float32), "half")
    nodes = [helper.make_node("Mul", [name, "half"], ["scaled"])]
    nodes += [helper.make_node(operation, ["scaled"], [output]) for output in outputs]
    inputs = [helper.make_tensor_value_info(each, kind, shape) for each in (name, *(["labels"] if second else []))]
    made = [helper.make_tensor_value_info(output, kind, None) for output in outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, made, [half]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, path)
    return path


def test_images_are_the_graph_s_and_do_not_depend_on_the_batch(tmp_path):
    sampler, _ = open_subject(str(graph(tmp_path / "student.onnx")), torch.device("cpu"))
    assert isinstance(sampler, OnnxSampler)
    assert (sampler.nfe, sampler.shape, sampler.network_parameters, sampler.kind) == (1, (1, 8, 8), 1, "export")
    noise = KeyedNoise((1, 8, 8), 1, 0, 5)
    torch.testing.assert_close(sampler.sample(noise), torch.tanh(KeyedNoise((1, 8, 8), 1, 0, 5).draw() / 2))
    whole = Generated(sampler, 0, 9, 9).images(0, 9)
    assert torch.equal(Generated(sampler, 0, 9, 2).images(0, 9), whole)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_conditional_graph_takes_labels_at_every_batch(tmp_path, steps):
    student = saved(tmp_path / "student")
    write_onnx(Generator(student, steps), tmp_path / "x.onnx", {"steps": [steps], "num_classes": CLASSES})
    sampler, _ = open_subject(str(tmp_path / "x.onnx"), torch.device("cpu"))
    assert isinstance(sampler, OnnxSampler)
    assert (sampler.num_classes, sampler.nfe, sampler.shape) == (CLASSES, steps, (1, 8, 8))
    for labels in ([2], [1, 1], [0, 1, 2, 0, 2]):
        images = sampler.sample(KeyedNoise((1, 8, 8), 3, 0, len(labels)), torch.tensor(labels))
        stock = stock_images(tmp_path / "student", steps, 3, labels)
        torch.testing.assert_close(images, stock, atol=1e-5, rtol=0)


def test_labels_that_are_not_of_its_classes_are_one_line(tmp_path):
    generator = Generator(conditional_student(), 1)
    write_onnx(generator, tmp_path / "x.onnx", {"num_classes": CLASSES})
    sampler = OnnxSampler("x.onnx", "x", tmp_path / "x.onnx")
    for labels in ([0, CLASSES], [-1, 0], None):
        given = None if labels is None else torch.tensor(labels)
        with pytest.raises(UserError, match=r"x\.onnx: labels: .*this student is class-conditional: give 0 to 2"):
            sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 2), given)


def test_labels_of_an_unknown_number_of_classes_are_refused(tmp_path):
    path = tmp_path / "x.onnx"
    write_onnx(Generator(conditional_student(), 1), path, {})
    model = onnx.load(path)
    for facts in ("{}", '{"num_classes": 0}', '{"num_classes": "3"}', '{"num_classes": 1000000000}', "[]", "{"):
        model.metadata_props[0].value = facts
        onnx.save(model, path)
        with pytest.raises(UserError, match=r"x\.onnx: takes 'labels' and does not say of how many classes"):
            OnnxSampler("x.onnx", "x", path)


def test_its_identity_is_that_of_the_weights_beside_it_too(tmp_path):
    path = graph(tmp_path / "x.onnx")
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="x.data", size_threshold=0)
    before, make_hash = open_subject(str(path), torch.device("cpu"))
    identity = make_hash()
    assert open_subject(str(path), torch.device("cpu"))[1]() == identity
    assert isinstance(before, OnnxSampler)
    image = before.sample(KeyedNoise((1, 8, 8), 1, 0, 5))
    (tmp_path / "x.data").unlink()
    (tmp_path / "x.data").write_bytes(np.array([0.25], np.float32).tobytes())
    after = open_subject(str(path), torch.device("cpu"))
    assert isinstance(after[0], OnnxSampler)
    assert not torch.equal(after[0].sample(KeyedNoise((1, 8, 8), 1, 0, 5)), image)
    assert after[1]() != identity


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "latent"}, "has the inputs latent tensor.float. .* needed is one float input 'noise'"),
        ({"second": True}, "has the inputs noise .*, labels"),
        ({"kind": DOUBLE}, r"tensor\(double\)"),
        ({"shape": ("batch", 64)}, "needed is one float input"),
        ({"shape": (4, 1, 8, 8)}, "with a free B"),
        ({"outputs": ("image", "other")}, "2 outputs"),
        ({"operation": "Flatten"}, r"gives float32 \(2, 64\) for two images \(1, 8, 8\)"),
    ],
)
def test_another_interface_is_one_line(tmp_path, changes, says):
    with pytest.raises(UserError, match=says) as error:
        OnnxSampler("x.onnx", "x", graph(tmp_path / "x.onnx", **changes))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_graph_is_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\x00not a graph")
    with pytest.raises(UserError, match="cannot be loaded as an ONNX graph"):
        OnnxSampler("x.onnx", "x", tmp_path / "x.onnx")
    with pytest.raises(
        UserError, match="an exported student makes the steps that it was exported for: leave out what follows @"
    ):
        open_subject(f"{graph(tmp_path / 'y.onnx')}@2", torch.device("cpu"))


def test_without_the_libraries_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[export\]'"):
        OnnxSampler("x.onnx", "x", graph(tmp_path / "x.onnx"))
