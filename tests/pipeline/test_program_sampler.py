"""A .pt2 file as a subject: its images, the interfaces that are refused, and that reading one runs nothing of it."""

import json
from contextlib import suppress
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from fewstep.errors import UserError
from fewstep.eval.noise import KeyedNoise
from fewstep.pipeline.program_sampler import ProgramSampler
from fewstep.pipeline.subjects import open_subject

CPU = torch.device("cpu")
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


class Generator(nn.Module):
    """A small generator with what networks have: norms, a batch that is folded, a constant, a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, noise):
        x = nn.functional.gelu(self.norm(self.first(noise)), approximate="tanh")
        x = x.reshape(x.shape[0] * 4, 8, 8).softmax(-1).reshape(-1, 4, 8, 8)
        time = torch.full((noise.shape[0],), 3.0, device=noise.device)
        return torch.tanh(self.last(x) * self.scale + time.sin()[:, None, None, None])


class Two(nn.Module):
    def forward(self, noise, labels):
        return noise + labels


class Latent(nn.Module):
    def forward(self, latent):
        return latent * 2


class Of(nn.Module):
    """The generator that a function of noise is."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, noise):
        return self.function(noise)


def exported(path, module, *inputs, free=True):
    """Write `module` as a .pt2 whose first dimension is free."""
    batch = Dim("batch", min=1, max=4096)
    shapes = [{0: batch} if free else None for _ in inputs]
    with torch.no_grad():
        torch.export.save(torch.export.export(module.eval(), inputs, dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator().eval()


@pytest.fixture(scope="module")
def program(generator, tmp_path_factory):
    """The generator's .pt2, to be read only."""
    return exported(tmp_path_factory.mktemp("program") / "student.pt2", generator, torch.randn(2, 1, 8, 8))


def changed(program: Path, path: Path, *, replace=None, add=None, compression=ZIP_STORED):
    """A copy of an archive: `replace` maps parts to functions of their bytes, `add` parts to bytes."""
    replace, add = replace or {}, add or {}
    with ZipFile(program) as old, ZipFile(path, "w", compression) as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            part = name.removeprefix(f"{root}/")
            content = old.read(name)
            new.writestr(name, replace[part](content) if part in replace else content)
        for part, content in add.items():
            new.writestr(f"{root}/{part}", content)
    return path


def edited(edit):
    """A function of JSON bytes that applies `edit` to their value, in place."""

    def apply(content):
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return apply


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_images_are_the_module_s_at_every_batch(program, generator, batch):
    sampler, identity = open_subject(str(program), CPU)
    assert isinstance(sampler, ProgramSampler)
    assert (sampler.nfe, sampler.shape, sampler.kind, len(identity)) == (1, (1, 8, 8), "export", 64)
    assert sampler.network_parameters == 40 + 37 + 8 + 1
    x = KeyedNoise((1, 8, 8), 3, 0, batch).draw()
    with torch.no_grad():
        torch.testing.assert_close(sampler.sample(KeyedNoise((1, 8, 8), 3, 0, batch)), generator(x))


def test_operations_are_counted(program, generator):
    sampler = ProgramSampler("x", "x", program, CPU)
    with FlopCounterMode(display=False) as counter:
        sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 1))
    assert counter.get_total_flops() == 2 * (2 * 64 * 9 * 4)  # two convolutions, 1 -> 4 and 4 -> 1, 3x3 on 8x8


def test_a_region_without_gradients_is_run(tmp_path):
    path = exported(
        tmp_path / "x.pt2", Of(torch.no_grad()(lambda noise: torch.tanh(noise * 2))), torch.randn(2, 1, 4, 4)
    )
    noise = KeyedNoise((1, 4, 4), 0, 0, 3).draw()
    sampled = ProgramSampler("x", "x", path, CPU).sample(KeyedNoise((1, 4, 4), 0, 0, 3))
    torch.testing.assert_close(sampled, torch.tanh(noise * 2))


def test_a_constant_tensor_and_the_text_of_a_product_are_read(tmp_path):
    def function(noise):
        return torch.einsum("bchw,wv->bchv", noise, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    path = exported(tmp_path / "x.pt2", Of(function), torch.randn(2, 1, 2, 2))
    noise = KeyedNoise((1, 2, 2), 0, 0, 3).draw()
    sampled = ProgramSampler("x", "x", path, CPU).sample(KeyedNoise((1, 2, 2), 0, 0, 3))
    torch.testing.assert_close(sampled, noise.flip(-1))


@pytest.mark.gpu
def test_a_program_exported_on_the_processor_runs_on_the_device(program, generator):
    sampled = ProgramSampler("x", "x", program, torch.device("cuda")).sample(KeyedNoise((1, 8, 8), 0, 0, 5))
    assert sampled.device.type == "cuda"
    with torch.no_grad():
        expected = generator(KeyedNoise((1, 8, 8), 0, 0, 5).draw())
    torch.testing.assert_close(sampled.cpu(), expected, atol=2e-3, rtol=0)  # TF32 convolutions


IMAGES = torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("module", "inputs", "free", "says"),
    [
        (Latent(), (IMAGES,), True, "has the inputs latent float32 .*; needed is one float32 input 'noise'"),
        (Two(), (IMAGES, IMAGES), True, "has the inputs noise float32 .*, labels float32"),
        (Of(torch.tanh), (IMAGES.double(),), True, r"has the inputs noise float64 \[free, 1, 8, 8\]"),
        (Of(torch.tanh), (torch.randn(2, 64),), True, r"has the inputs noise float32 \[free, 64\]"),
        (Of(torch.tanh), (IMAGES,), False, r"has the inputs noise float32 \[2, 1, 8, 8\] .* with a free B"),
        (Of(lambda noise: (noise, noise + 1)), (IMAGES,), True, "2 outputs"),
        (Of(lambda noise: noise.flatten(1)), (IMAGES,), True, r"gives float32 \(1, 64\) for \(1, 1, 8, 8\)"),
        (Of(lambda noise: noise.double()), (IMAGES,), True, r"gives float64 \(1, 1, 8, 8\)"),
    ],
)
def test_another_interface_is_one_line(tmp_path, module, inputs, free, says):
    path = exported(tmp_path / "x.pt2", module, *inputs, free=free)
    with pytest.raises(UserError, match=says) as error:
        ProgramSampler("x.pt2", "x", path, CPU)
    assert "\n" not in str(error.value)


def test_a_program_that_fails_on_a_batch_is_one_line(tmp_path):
    program = torch.export.export(Of(torch.tanh), (IMAGES,), dynamic_shapes=[{0: Dim("batch", min=1, max=63)}])
    torch.export.save(program, tmp_path / "x.pt2")
    sampler = ProgramSampler("x.pt2", "x", tmp_path / "x.pt2", CPU)
    with pytest.raises(
        UserError, match=r"x\.pt2: fails on a batch of 64 \(.*<= 63.*eval.throughput_batch_sizes"
    ) as error:
        sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 64))
    assert "\n" not in str(error.value)


def pickled(planted):
    """A pickle that makes the folder `planted` when it is read."""
    return f"cos\nmkdir\n(V{planted}\ntR.".encode()


def load_as_torch_does(path):
    """What torch itself makes of a file: whether it comes to an end is not the question here."""
    with suppress(Exception):
        torch.export.load(path)


CONSTANTS = "data/constants/model_constants_config.json"
PICKLE = {"is_param": False, "use_pickle": True, "tensor_meta": None}
PICKLES = {
    "weight": {"replace": WEIGHTS, "as": PICKLE | {"path_name": "weight_9"}, "in": "data/weights/weight_9"},
    "constant": {"replace": CONSTANTS, "as": PICKLE | {"path_name": "tensor_0"}, "in": "data/constants/tensor_0"},
    "object": {"replace": CONSTANTS, "as": PICKLE | {"path_name": "opaque_obj_0"}, "in": "data/constants/opaque_obj_0"},
    "legacy": {"replace": WEIGHTS, "as": None, "in": "data/weights/model.pt"},
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickled_payload_is_refused_and_nothing_is_unpickled(program, tmp_path, kind):
    planted, how = tmp_path / "planted", PICKLES[kind]
    replace = {how["in"]: lambda content: pickled(planted)}
    if how["as"] is not None:
        replace[how["replace"]] = edited(lambda value: value["config"].update(scale=how["as"]))
    bad = changed(program, tmp_path / "x.pt2", replace=replace, add={how["in"]: pickled(planted)})
    with pytest.raises(UserError, match=r"x\.pt2: holds a pickle \(.*: not read, since it could run code") as error:
        ProgramSampler("x.pt2", "x", bad, CPU)
    assert "\n" not in str(error.value)
    assert not planted.exists()
    load_as_torch_does(bad)
    assert planted.exists()  # so the file was not harmless


def test_sample_inputs_are_not_unpickled(program, tmp_path):
    planted, part = tmp_path / "planted", "data/sample_inputs/model.pt"
    bad = changed(program, tmp_path / "x.pt2", replace={part: lambda _: pickled(planted)})
    assert ProgramSampler("x.pt2", "x", bad, CPU).shape == (1, 8, 8)
    assert not planted.exists()
    load_as_torch_does(bad)
    assert planted.exists()


def of_graph(edit):
    return edited(lambda value: edit(value["graph_module"]["graph"]))


def expression(text):
    """A program whose noise has `text` for its batch."""
    return of_graph(lambda graph: graph["tensor_values"]["noise"]["sizes"][0]["as_expr"].update(expr_str=text))


def target(text):
    return of_graph(lambda graph: graph["nodes"][-1].update(target=text))


def argument(**value):
    return of_graph(lambda graph: graph["nodes"][-1]["inputs"][0].update(arg=value))


def test_a_hostile_expression_is_refused_and_not_evaluated(program, tmp_path):
    planted = tmp_path / "planted"
    bad = changed(program, tmp_path / "x.pt2", replace={MODEL: expression(f"__import__('os').mkdir({str(planted)!r})")})
    with pytest.raises(UserError, match=r"x\.pt2: holds the text .__import__.* as expr_str: not read"):
        ProgramSampler("x.pt2", "x", bad, CPU)
    assert not planted.exists()
    load_as_torch_does(bad)
    assert planted.exists()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (expression("eval(input())"), "the text 'eval.input.*' as expr_str"),
        (expression("Symbol('s0').__class__"), "as expr_str"),
        (expression("Integer(9)**9**9**9"), "as expr_str"),
        (expression("[s0]"), "as expr_str"),
        (expression("s0 + " * 500 + "s0"), "as expr_str"),
        (expression("/" * 60 + "!"), "as expr_str"),
        (target("torch.os.system"), "the operator 'torch.os.system'"),
        (target("torch.ops.load_library"), "the operator 'torch.ops.load_library'"),
        (target("torch.ops.aten.__class__.mro"), "the operator"),
        (target("torch.ops.aten.tanh.overloads"), "the operator"),
        (target("_operator.methodcaller"), "the operator '_operator.methodcaller'"),
        (target("#extension:op"), "the operator '#extension:op'"),
        (target("torch.ops.aten.from_file.default"), "the operator .*from_file.default, which opens files"),
        (argument(as_string="/some/file"), "the text '/some/file' as as_string"),
        (argument(as_operator="torch.os.system"), r"what is no tensor \(as_operator\)"),
        (argument(as_custom_obj={"name": "x", "class_fqn": "y"}), r"what is no tensor \(as_custom_obj\)"),
        (argument(as_tensor={"name": "x); import os; ("}), "the text 'x.; import os; .' as name"),
        (of_graph(lambda graph: graph["tensor_values"].update({"a-b": None})), "the name 'a-b'"),
        (edited(lambda value: value.update(range_constraints={"s0": {"min_val": "x", "max_val": 2}})), "as min_val"),
    ],
)
def test_text_and_operators_outside_the_lists_are_refused(program, tmp_path, edit, says):
    bad = changed(program, tmp_path / "x.pt2", replace={MODEL: edit})
    with pytest.raises(UserError, match=rf"x\.pt2: holds .*{says}.*: not read, since it could run code") as error:
        ProgramSampler("x.pt2", "x", bad, CPU)
    assert "\n" not in str(error.value)


def test_guards_metadata_and_input_specification_are_left_out(program, tmp_path):
    planted, imported = tmp_path / "planted", '[1, {"type": "no.such.module"}]'

    def edit(value):
        value["guards_code"] = [f"__import__('os').mkdir({str(planted)!r})"]
        value["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = imported
        value["graph_module"]["graph"]["nodes"][0]["metadata"]["custom"] = "no json"

    bad = changed(program, tmp_path / "x.pt2", replace={MODEL: edited(edit)})
    assert ProgramSampler("x.pt2", "x", bad, CPU).shape == (1, 8, 8)
    assert not planted.exists()


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("data/aotinductor/model/wrapper.so", "compiled code"),
        ("data/aotinductor/model/weights_config.json", "compiled code"),
        ("data/constants/custom_obj_0", "a pickle"),
        ("models/other.json", "'models/other.json', which torch.export.save does not write"),
    ],
)
def test_an_archive_with_more_in_it_is_refused(program, tmp_path, part, says):
    bad = changed(program, tmp_path / "x.pt2", add={part: b"\x7fELF"})
    with pytest.raises(UserError, match=rf"holds {says}"):
        ProgramSampler("x.pt2", "x", bad, CPU)


def damaged(program, path, form):
    whole = program.read_bytes()
    if form == "empty":
        path.write_bytes(b"")
    elif form == "text":
        path.write_text("no archive")
    elif form == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif form == "flipped":
        path.write_bytes(whole.replace(b'"torch.ops.aten.conv2d', b'"torch.ops.aten.conv3d', 1))
    elif form == "compressed":
        changed(program, path, compression=ZIP_DEFLATED)
    elif form == "older":
        with ZipFile(path, "w") as archive:
            archive.writestr("serialized_exported_program.json", "{}")
    else:
        edits = {
            "no json": lambda _: b"{",
            "list": lambda _: b"[]",
            "gap": edited(lambda value: value.pop("range_constraints")),
            "newer": edited(lambda value: value.update(schema_version={"major": 99, "minor": 0})),
            "deep": lambda _: b"[" * 100_000,
            "sizes": of_graph(lambda graph: graph["tensor_values"]["noise"].update(sizes=[1])),
        }
        changed(program, path, replace={MODEL: edits[form]})
    return path


@pytest.mark.parametrize(
    "form",
    ["empty", "text", "cut", "flipped", "compressed", "older", "no json", "list", "gap", "newer", "deep", "sizes"],
)
def test_a_damaged_file_is_one_line(program, tmp_path, form, capfd):
    with pytest.raises(UserError, match=r"x\.pt2: cannot be (?:read|loaded) as a torch\.export program \(") as error:
        ProgramSampler("x.pt2", "x", damaged(program, tmp_path / "x.pt2", form), CPU)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_steps_are_refused(program):
    with pytest.raises(UserError, match="an exported student makes one step: leave out what follows @"):
        open_subject(f"{program}@2", CPU)
