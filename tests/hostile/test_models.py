"""Models, references and weights that lie about their size, name code, or point out of their folder; and pickles."""

import json
import os
import shutil
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from fewstep.eval.array_file import read_arrays, read_torch
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.features.weights_file import PublishedWeights
from fewstep.eval.quality.reference_files import read_reference
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.students.load import load_student
from fewstep.teachers.load import ddpm_model, load_teacher, save_teacher
from fewstep.teachers.network import build_scheduler

CPU = torch.device("cpu")
WEIGHTS = PublishedWeights(network="a network", owner="its", url="x", sha256="0")


@pytest.fixture
def folder(tmp_path, tiny_unet):
    """A sound teacher's folder."""
    scheduler = build_scheduler(100, "linear", "v_prediction")
    save_teacher(ddpm_model(tiny_unet(), scheduler), scheduler, tmp_path / "model")
    return tmp_path / "model"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_pipeline(folder):
    """The same folder as a class that is measured as its users call it."""
    change(folder / "model_index.json", _class_name="DDIMPipeline")
    return f"{folder}@2"


def test_a_pipeline_that_brings_code_is_refused_and_nothing_of_it_runs(tmp_path, folder, refused):
    code = f"import os; os.mkdir({str(tmp_path / 'ran')!r})\n"
    for name, index in (
        ("mine.py", {"_class_name": ["mine", "Pipeline"]}),
        ("pipeline.py", {}),
        ("unet/diffusers.py", {}),
        ("unet/mine.py", {"unet": ["mine", "UNet"]}),
    ):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(folder, copy)
        subject = as_pipeline(copy)
        (copy / name).write_text(code)
        change(copy / "model_index.json", **index)
        with refused():
            open_subject(subject, CPU)
        with refused():
            open_subject(str(copy), CPU)
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "index",
    [
        {"unet": ["os", "system"]},
        {"unet": ["antigravity", "x"]},
        {"unet": ["transformers", "AutoModel"]},
        {"unet": ["diffusers", "DiffusionPipeline"]},
        {"unet": ["diffusers", "__path__"]},
        {"unet": ["diffusers"]},
        {"../unet": ["diffusers", "UNet2DModel"]},
        {"_class_name": "os"},
        {"_class_name": ["a", "b"]},
        {"_class_name": 3},
        {"scheduler": [{}, []]},
    ],
)
def test_a_pipeline_of_other_classes_than_diffusers_own_is_refused(folder, refused, index):
    subject = as_pipeline(folder)
    change(folder / "model_index.json", **index)
    with refused():
        open_subject(subject, CPU)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"block_out_channels": [16] * 10**5}),
        ("unet/config.json", {"block_out_channels": [10**12, 10**12]}),
        ("unet/config.json", {"sample_size": 10**9}),
        ("unet/config.json", {"sample_size": -3}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"attention_head_dim": 0}),
        ("unet/config.json", {"act_fn": "\x1b[31m"}),
        ("unet/config.json", {"down_block_types": 3}),
        ("unet/config.json", {"in_channels": None}),
        ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**15}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"beta_schedule": []}),
        ("scheduler/scheduler_config.json", {"trained_betas": [{}]}),
        ("scheduler/scheduler_config.json", {"beta_start": "a"}),
        ("scheduler/scheduler_config.json", {"prediction_type": ["a"]}),
        ("scheduler/scheduler_config.json", {"prediction_type": {}}),
    ],
)
def test_a_model_s_configuration_of_wrong_types_or_sizes_is_one_line(folder, refused, name, values):
    change(folder / name, **values)
    with refused():
        load_teacher(folder)
    subject = as_pipeline(folder)
    with refused():
        open_subject(subject, CPU)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000, '{"a": ' * 5000, "\xff", '{"a": NaN'])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_of_a_model_that_is_none_is_one_line(folder, refused, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    for load in (load_teacher, load_student, lambda path: open_subject(f"{path}@ddim:2", CPU)):
        with refused():
            load(folder)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_pipe_in_a_model_s_folder_is_not_waited_for(folder, refused, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for load in (load_teacher, load_student, lambda path: open_subject(f"{path}@ddim:2", CPU)):
        with refused():
            load(folder)


def header(entries, data=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**9) + b"{}",
        header(b"[" * 5000),
        header({"a": {"dtype": "NaN", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}}, bytes(4)),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        header({"a": 3}),
    ],
)
def test_a_safetensors_header_that_lies_is_one_line(tmp_path, folder, refused, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    with refused():
        WEIGHTS.read(tmp_path / "w.safetensors", torch.nn.Linear(1, 1))
    with refused():
        read_reference(tmp_path / "w.safetensors", load_extractor("digits-cnn", None, "cpu"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(data)
    with refused():
        load_teacher(folder)


def test_a_zip_bomb_as_npz_is_refused_before_it_is_unpacked(tmp_path, refused):
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((4000, 200, 200, 1), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 200_000
    tracemalloc.start()
    try:
        with refused("times the file and more"):
            open_subject(str(tmp_path / "bomb.npz"), CPU)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_npz_whose_names_leave_the_folder_writes_nothing(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "slip.npz", "w") as archive:
        archive.writestr("../../out.npy", b"x")
        archive.writestr("/tmp/out.npy", b"x")
    before = sorted(tmp_path.parent.rglob("*"))
    with refused():
        open_subject(str(tmp_path / "slip.npz"), CPU)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_arrays_of_both_orders_come_back_as_they_were(tmp_path):
    values = {"c": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "o": np.array(3.0)}
    np.savez(tmp_path / "a.npz", **values)
    for name, found in zip(values, read_arrays("x", tmp_path / "a.npz", list(values)), strict=True):
        np.testing.assert_array_equal(found, values[name])


def test_a_tensor_that_claims_more_than_its_file_holds_is_refused(tmp_path, refused):
    torch.save(torch.zeros(1).as_strided((10**13, 64), (0, 0)), tmp_path / "x.pt")
    with refused("more than the file"):
        read_torch("eval.reference", tmp_path / "x.pt", "a cache")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_as_weights_or_reference_does_not_run(tmp_path, shell, refused, suffix, zipped):
    path = tmp_path / f"x{suffix}"
    torch.save({"mu": shell, "weight": shell}, path, _use_new_zipfile_serialization=zipped)
    with refused():
        WEIGHTS.read(path, torch.nn.Linear(1, 1))
    with refused():
        read_reference(path, load_extractor("digits-cnn", None, "cpu"))


@pytest.mark.parametrize("name", ["x.npz", "x.pt2", "x.onnx", "x.pt", "x.pkl"])
def test_a_malicious_pickle_as_a_subject_does_not_run(tmp_path, shell, refused, name):
    torch.save(shell, tmp_path / name)
    with refused():
        open_subject(str(tmp_path / name), CPU)
    np.savez(tmp_path / name, np.array([shell], dtype=object))
    found = tmp_path / name if (tmp_path / name).exists() else tmp_path / f"{name}.npz"
    with refused():
        open_subject(str(found), CPU)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.ckpt", "pytorch_model.bin"])
def test_a_malicious_pickle_in_a_model_s_folder_does_not_run(folder, shell, refused, name):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": shell}, folder / "unet" / name)
    with refused():
        load_teacher(folder)
    with refused():
        load_student(folder)
    subject = as_pipeline(folder)
    with refused():
        open_subject(subject, CPU)


def test_a_data_set_s_folder_with_a_script_or_a_pickle_runs_neither(tmp_path, shell, refused):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(f"import os; os.mkdir({shell.path!r})\n")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data.pkl\n---\n")
    torch.save(shell, folder / "data.pkl")
    for source in (f"imagefolder:{folder}", f"parquet:{folder}", f"hub:{folder}", f"hub:{folder}/mine.py"):
        with refused():
            load_data(DataConfig(source=source), "train")


def test_a_folder_beside_us_is_not_taken_for_a_data_set_of_the_hub(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with refused("the name of a file or folder here"):
        load_data(DataConfig(source="hub:mine"), "train")


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "", "link", "a/b", ".."])
def test_onnx_weights_outside_the_graph_s_folder_are_not_read(tmp_path, refused, location):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path.parent / "weights").write_bytes(bytes(4))
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [0.5])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    made = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("b", 1, 8, 8)) for name in ("noise", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["noise", "w"], ["y"])], "g", made[:1], made[1:], [tensor]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with refused("which is no file beside it"):
        open_subject(str(tmp_path / "x.onnx"), CPU)


@pytest.mark.parametrize("data", [b"", b"\x08\x08", os.urandom(300), b"\x0a" * 4000])
def test_bytes_that_are_no_graph_are_one_line_and_no_log(tmp_path, refused, capfd, data):
    (tmp_path / "x.onnx").write_bytes(data)
    with refused():
        open_subject(str(tmp_path / "x.onnx"), CPU)
    assert capfd.readouterr() == ("", "")
