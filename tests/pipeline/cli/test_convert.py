"""`fewstep convert`: the same weights as safetensors, to the bit; what is no weights is refused and leaves nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.stages import convert as stage
from fewstep.pipeline.stages import unpickle
from fewstep.teachers.describe import describe
from fewstep.teachers.load import ddpm_model, load_teacher, save_teacher
from fewstep.teachers.network import build_scheduler

NAME = "diffusion_pytorch_model"
SAFE = f"{NAME}.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_unet):
    """The folder of a teacher whose weights are a pickle."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    scheduler = build_scheduler(100, "linear", "v_prediction")
    save_teacher(ddpm_model(tiny_unet(seed=5), scheduler), scheduler, folder)
    torch.save(load_file(folder / "unet" / SAFE), folder / "unet" / f"{NAME}.bin")
    (folder / "unet" / SAFE).unlink()
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy of it, named `model` from the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "model")
    return Path("model")


@pytest.fixture
def at_once(monkeypatch):
    """The pickle is read in this process, which has imported torch already."""
    monkeypatch.setattr(stage, "unpickle", unpickle.write_tensors)


def weights(tiny_unet):
    return tiny_unet(seed=5).state_dict()


def same(path, tensors):
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)


def refused(capsys, *arguments):
    """The one line of a call that must fail and leave what was there as it was."""
    before = sorted(Path().rglob("*"))
    assert main(["convert", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(Path().rglob("*")) == before
    return err.removeprefix("fewstep: error: ").strip()


def test_a_copy_has_the_same_weights_and_configurations(folder, tiny_unet, capsys):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "unet" / f"{NAME}.bin.index.json").write_text("{}")
    (folder / "unet" / "mine.py").write_text("")
    assert main(["convert", "model", "-o", "copy"]) == 0
    texts = ["README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    files = sorted(path.relative_to("copy").as_posix() for path in Path("copy").rglob("*") if path.is_file())
    assert files == sorted([*texts, f"unet/{SAFE}"])
    assert all((Path("copy") / name).read_bytes() == (folder / name).read_bytes() for name in texts)
    same(Path("copy/unet") / SAFE, weights(tiny_unet))
    assert load_teacher("copy").scaling.name == "v_prediction"
    size = (Path("copy/unet") / SAFE).stat().st_size
    assert capsys.readouterr().out == f"112 tensors, {size:,} bytes: {Path('copy/unet').absolute() / SAFE}\n"
    assert sorted(path.name for path in Path().iterdir()) == ["copy", "model"]


def test_a_flat_model_of_the_hub_stays_flat(folder, tiny_unet, at_once, monkeypatch):
    for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    half = {name: value.half() for name, value in weights(tiny_unet).items()}
    nested = {"state_dict": {name: torch.nn.Parameter(value) for name, value in half.items()}}
    torch.save(nested, folder / f"{NAME}.bin", _use_new_zipfile_serialization=False)
    (folder / "other.ckpt").touch()
    asked = []
    fetched = "fewstep.teachers.folder.fetched"
    monkeypatch.setattr(fetched, lambda *given, **named: asked.append((given, named)) or folder)
    Path("copy").mkdir()
    assert main(["convert", "some/model", "--revision", "v1", "-o", "copy"]) == 0
    assert asked == [(("some/model", "v1"), {"weights": "bin"})]
    files = sorted(path.name for path in Path("copy").iterdir())
    assert files == ["config.json", SAFE, "model_index.json", "scheduler_config.json"]
    same(Path("copy") / SAFE, half)


def test_a_network_without_a_scheduler_and_with_another_name_of_its_weights(folder, tiny_unet, at_once):
    shutil.rmtree(folder / "scheduler")
    (folder / "model_index.json").unlink()
    (folder / "unet" / f"{NAME}.bin").rename(folder / "unet" / "ema.ckpt")
    assert main(["convert", "model", "-o", "copy"]) == 0
    same(Path("copy/unet") / SAFE, weights(tiny_unet))


def in_parts(folder, tiny_unet):
    """The same weights as three pickles with an index, as diffusers saves large ones."""
    (folder / "unet" / f"{NAME}.bin").unlink()
    tiny_unet(seed=5).save_pretrained(folder / "unet", max_shard_size="100KB", safe_serialization=False)
    parts = sorted(folder.glob("unet/*.bin"))
    assert len(parts) > 1
    return parts


def test_pickles_in_parts_become_safetensors_in_parts(folder, tiny_unet, at_once, capsys):
    parts = in_parts(folder, tiny_unet)
    assert "fewstep convert" in describe(folder)["why_not"]
    assert main(["convert", "model", "-o", "copy"]) == 0
    assert capsys.readouterr().out.startswith("112 tensors, ")
    assert [path.stem for path in parts] == sorted(path.stem for path in Path("copy/unet").glob("*.safetensors"))
    assert describe(Path("copy"))["route"] == "fold"
    found = load_teacher("copy").network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights(tiny_unet).items())


@pytest.mark.parametrize("fault", ["part missing", "tensor missing", "tensor twice", "path"])
def test_parts_that_do_not_fit_their_index_are_refused(folder, tiny_unet, at_once, capsys, fault):
    first, last = (parts := in_parts(folder, tiny_unet))[0], parts[-1]
    index = folder / "unet" / f"{NAME}.bin.index.json"
    tensors = torch.load(first, weights_only=True)  # noqa: TID251 - ours
    if fault == "part missing":
        last.unlink()
    elif fault == "tensor missing":
        torch.save(dict(list(tensors.items())[1:]), first)
    elif fault == "tensor twice":
        torch.save(tensors | {"conv_out.bias": torch.zeros(1)}, first)
    else:
        index.write_text(index.read_text().replace(last.name, f"../{last.name}"))
    says = {
        "part missing": f"{index}: '{last.name}': is named there, and is not in the folder",
        "path": f"{index}: '../{last.name}': must be the name of a file in its folder",
    }
    line = refused(capsys, "model", "-o", "copy")
    assert line == says.get(fault, f"{first}: does not hold the tensors that {index.name} names for it")


def test_a_git_lfs_pointer_is_named(folder, capsys):
    (folder / "unet" / f"{NAME}.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "is a git-lfs pointer, not the file itself: run git lfs pull" in refused(capsys, "model", "-o", "copy")


class Payload:
    """Unpickled, it makes a file: what a malicious pickle would do."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_malicious_pickle_is_refused_and_does_not_run(folder, tmp_path, capsys):
    path = folder / "unet" / f"{NAME}.bin"
    torch.save({"conv_in.bias": torch.zeros(2), "conv_in.weight": Payload(tmp_path / "mark")}, path)
    line = refused(capsys, "model", "-o", "copy")
    assert line.startswith(f"MODEL: '{path}': cannot be read as named tensors (it names ")
    assert "not run" in line
    torch.load(path, weights_only=False)  # noqa: TID251 - the payload is a live one
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("conv_in.bias"), "missing_keys ['conv_in.bias']"),
        (lambda state: state.update(more=torch.zeros(2)), "unexpected_keys ['more']"),
        (lambda state: state.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias"),
        (lambda state: state["conv_in.bias"].fill_(torch.nan), "conv_in.bias holds NaN"),
    ],
)
def test_weights_of_another_network_are_named(folder, tiny_unet, at_once, capsys, change, says):
    state = dict(weights(tiny_unet))
    change(state)
    torch.save(state, folder / "unet" / f"{NAME}.bin")
    line = refused(capsys, "model", "-o", "copy")
    assert line.startswith("model")
    assert says in line
    assert ".copy.new" not in line


VIEW = torch.arange(12.0).reshape(3, 4)


def test_tensors_that_share_memory_or_lie_otherwise_are_written_as_they_are(tmp_path):
    value = {
        "all": VIEW,
        "turned": VIEW.T,
        "row": VIEW[1],
        "each": VIEW[:, ::2],
        "one": torch.tensor(3),
        "no": VIEW[:0],
    }
    torch.save(value, tmp_path / "x.bin")
    assert unpickle.write_tensors(tmp_path / "x.bin", tmp_path / "x.safetensors") == len(value)
    same(tmp_path / "x.safetensors", value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (VIEW, "it holds Tensor"),
        ([VIEW], "it holds list"),
        ({}, "it holds no tensors"),
        ({"state_dict": {}}, "it holds no tensors"),
        ({1: VIEW}, "1, which is no text"),
        ({"a": VIEW, "b": {"c": VIEW}}, "under 'b' it holds dict"),
        ({"a": {"b": {"c": VIEW}}}, "under 'b' it holds dict"),
        ({"a": VIEW.numpy()}, "under 'a' it holds ndarray"),
        ({"a": VIEW, "epoch": 3}, "under 'epoch' it holds int"),
        ({"a": VIEW.to_sparse()}, "'a' is sparse"),
        ({"a": VIEW + 1j}, "'a' is sparse, quantized, complex"),
        ({"a": torch._neg_view(VIEW)}, "a view that is computed"),
        ({str(number): VIEW for number in range(9)}, "share memory: written out they are 432 bytes, the file is 200"),
    ],
)
def test_what_is_no_dictionary_of_dense_tensors_is_refused(value, says):
    with pytest.raises(ValueError, match=says):
        unpickle.named_tensors(value, 200)


def test_a_process_that_takes_too_long_or_fails_is_one_line(folder, tmp_path, monkeypatch):
    path = folder / "unet" / f"{NAME}.bin"
    with pytest.raises(UserError, match=r"takes longer to read than 0\.01 s"):
        unpickle.unpickle(path, tmp_path / "x.safetensors", 0.01)
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"the process that reads it failed \(exit code 1; is there memory for it\?\)"):
        unpickle.unpickle(path, tmp_path / "x.safetensors")


def configure(**values):
    def change(folder):
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def several(folder):
    (folder / "unet" / f"{NAME}.bin").rename(folder / "unet" / "a.pt")
    (folder / "unet" / "b.pth").touch()


def with_another_part(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))
    (folder / "vqvae").mkdir()


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        (lambda f: save_file({"a": VIEW}, f / "unet" / SAFE), (), "model: has safetensors weights: it needs no conver"),
        (lambda f: (f / "unet" / f"{NAME}.bin").unlink(), (), f"model/unet: has no weights: no {NAME}.bin"),
        (several, (), "model/unet: has several pickles (a.pt, b.pth): name the network's"),
        (configure(_class_name="UNet2DConditionModel"), (), "model: its network is UNet2DConditionModel, not UNet2D"),
        (with_another_part, (), "model: has vqvae beside unet and scheduler: no copy is made"),
        (lambda f: Path("copy").touch(), (), "--out: '"),
        (lambda f: shutil.copytree(f, "copy"), (), "--out: '"),
        (lambda f: None, ("-o", "no/copy"), "--out: 'no/copy': there is no folder no: make it first"),
        (lambda f: None, ("--revision", "v1"), "--revision: 'v1': is of a hub id, and model is a folder: leave it out"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_the_pickle_is_read(
    folder, capsys, monkeypatch, change, arguments, says
):
    monkeypatch.setattr(stage, "unpickle", lambda *_: pytest.fail("the pickle is read"))
    change(folder)
    line = refused(capsys, "model", "-o", "copy", *arguments)
    assert line.startswith(says)
    assert says != "--out: '" or "exists and is not an empty folder" in line


def test_a_file_or_no_model_at_all_is_refused(folder, capsys):
    path = f"model/unet/{NAME}.bin"
    assert refused(capsys, path, "-o", "copy").startswith(f"MODEL: '{path}': is a file: give the folder of its model")
    assert refused(capsys, "nowhere", "-o", "copy").startswith("nowhere: no such file or folder, and no hub id")


def test_the_current_folder_is_not_replaced(folder, capsys, monkeypatch):
    model = str(folder.absolute())
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    assert "or is the current one" in refused(capsys, model, "-o", ".")
