"""A teacher's folder: stock diffusers reads what we write, and every fault is one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.teachers.interfaces import Space
from fewstep.teachers.load import ddpm_model, load_teacher, read_teacher, save_teacher
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM, FlowMatching, Scaling
from fewstep.teachers.stock import quiet

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_unet: Callable[..., UNet2DModel]) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "teacher"
    scheduler = build_scheduler(1000, "linear", "v_prediction")
    save_teacher(ddpm_model(tiny_unet(seed=3), scheduler), scheduler, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "teacher"))


def configure(file: str, **values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | values))

    return change


def text(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return apply


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "index no JSON": (text("model_index.json", "{"), r"model_index\.json: is not valid JSON"),
    "index no object": (text("model_index.json", "[]"), "it is no JSON object"),
    "index unet empty": (text("model_index.json", '{"unet": []}'), "holds no UNet2DModel"),
    "other network": (text("model_index.json", '{"unet": ["diffusers", "UNet2DConditionModel"]}'), "no UNet2DModel"),
    "no unet folder": (lambda f: shutil.rmtree(f / "unet"), "no such file"),
    "no scheduler folder": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json: no such file"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "it has no safetensors weights"),
    "truncated weights": (truncate, "its length is not what its header says"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "is no safetensors file"),
    "missing tensor": (weights(lambda s: s.pop("conv_in.bias")), r"missing_keys \['conv_in.bias'\]"),
    "tensor too many": (weights(lambda s: s.update(more=torch.zeros(2))), r"unexpected_keys \['more'\]"),
    "shape": (weights(lambda s: s.update({"conv_in.bias": torch.zeros(3)})), "conv_in.bias"),
    "unet config no JSON": (text(UNET, "{"), r"config\.json: is not valid JSON"),
    "unet config no object": (
        text(UNET, "[]"),
        r"config\.json: is not of the form .*: it is no JSON object",
    ),
    "scheduler no JSON": (text(SCHEDULER, "nope"), r"scheduler_config\.json: is not valid JSON"),
    "scheduler no object": (text(SCHEDULER, "3"), "is no JSON object"),
    "class labels": (configure(UNET, num_class_embeds=10), r"missing_keys \['class_embedding.weight'\]"),
    "class timestep": (configure(UNET, class_embed_type="timestep"), "only a table of classes"),
    "unknown block": (configure(UNET, down_block_types=["A", "B"]), "cannot be loaded"),
    "no size": (configure(UNET, sample_size=None), "sample_size"),
    "size a word": (configure(UNET, sample_size="big"), "sample_size: 'big'"),
    "prediction": (configure(SCHEDULER, prediction_type="score"), "'score': use one of epsilon"),
    "timesteps a word": (configure(SCHEDULER, num_train_timesteps="x"), "its schedule cannot be used"),
    "schedule": (configure(SCHEDULER, beta_schedule="x"), "its schedule cannot be used"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_naming_the_folder(
    folder: Path, name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    change, expected = FAULTS[name]
    change(folder)
    with pytest.raises(UserError, match=expected) as caught:
        load_teacher(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "path", ["missing/folder/here", "./teacher", "/nowhere/teacher", "teacher", "~/no-such-teacher"]
)
def test_a_missing_folder_is_refused_without_asking_the_hub(path: str):
    with pytest.raises(UserError, match="no such folder"):
        load_teacher(path)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
def test_an_unreachable_hub_id_is_one_line():
    with pytest.raises(UserError, match=r"^nobody/nothing: no such folder, and the hub cannot be reached") as caught:
        load_teacher("nobody/nothing")
    assert "\n" not in str(caught.value)


class Payload:
    """Unpickled, it makes a file: what a malicious pickle would do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin"])
def test_weights_that_are_only_a_pickle_are_refused_unread(folder: Path, tmp_path: Path, name: str):
    (folder / WEIGHTS).unlink()
    torch.save(Payload(tmp_path / "mark"), folder / "unet" / name)
    with pytest.raises(UserError, match=r"are a pickle.*can run code.*fewstep convert"):
        load_teacher(folder)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_under_another_name_does_not_run(folder: Path, tmp_path: Path):
    torch.save(Payload(tmp_path / "mark"), folder / WEIGHTS)
    torch.save(Payload(tmp_path / "mark"), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="is no safetensors file"):
        load_teacher(folder)
    assert not (tmp_path / "mark").exists()
    # the payload is a live one
    torch.load(folder / "unet" / "diffusion_pytorch_model.bin", weights_only=False)  # noqa: TID251
    assert (tmp_path / "mark").exists()


def test_stock_pipeline_loads_the_same_teacher(saved: Path, tiny_unet: Callable[..., UNet2DModel]):
    with quiet():
        stock = DDPMPipeline.from_pretrained(str(saved), use_safetensors=True)
    teacher, original = load_teacher(str(saved)), tiny_unet(seed=3)
    for name, tensor in original.state_dict().items():
        assert torch.equal(stock.unet.state_dict()[name], tensor)
        assert torch.equal(teacher.network.state_dict()[name], tensor)
    assert stock.scheduler.config["prediction_type"] == teacher.scaling.name == "v_prediction"
    assert stock.scheduler.config["num_train_timesteps"] == 1000
    assert teacher.space.shape == (1, 8, 8)


def test_a_copy_of_a_loaded_teacher_does_not_say_where_it_was_read(saved: Path, tmp_path: Path):
    save_teacher(*read_teacher(saved), tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.json"):
        assert str(saved) not in file.read_text()


@pytest.mark.parametrize("scaling", [EDM(sigma_data=0.5), FlowMatching()])
def test_a_teacher_of_another_family_keeps_its_scaling_beside_its_network(
    tiny_unet: Callable[..., UNet2DModel], tmp_path: Path, scaling: Scaling
):
    space = Space(shape=(1, 8, 8), sigma_min=0.004, sigma_max=60.0)
    teacher = Preconditioned(tiny_unet(seed=3).eval(), scaling, space)
    save_teacher(teacher, None, tmp_path / "teacher")
    again = load_teacher(tmp_path / "teacher")
    assert again.space == space
    x, sigma = torch.ones(2, 1, 8, 8), torch.tensor([0.1, 7.0])
    with torch.no_grad():
        assert torch.equal(again(x, sigma), teacher(x, sigma))
    (tmp_path / "teacher" / "fewstep.json").write_text('{"scaling": {"name": "edm"}, "sigma_min": 2, "sigma_max": 1}')
    with pytest.raises(UserError, match=r"fewstep\.json: \(2, 1\): must be 0 < sigma_min < sigma_max"):
        load_teacher(tmp_path / "teacher")


def test_a_loaded_teacher_is_frozen(saved: Path):
    teacher = load_teacher(saved)
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_puts_the_logger_back_after_an_error_too(bars: bool):
    verbosity, before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    inside = []

    def fail() -> None:
        with quiet():
            inside.append((logging.get_verbosity(), logging.is_progress_bar_enabled()))
            raise OSError("inside")

    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with pytest.raises(OSError, match="inside"):
            fail()
        assert inside == [(logging.ERROR, False)]
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == bars
    finally:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
