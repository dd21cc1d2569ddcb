"""Reading a .pt2 file runs nothing of it, and what is damaged or has more in it than a network costs one line."""

from contextlib import suppress
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from exported_programs import changed, edited

from fewstep.errors import UserError
from fewstep.pipeline.sampling.pt2 import ProgramSampler

CPU = torch.device("cpu")
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


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
