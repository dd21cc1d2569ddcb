"""A student's folder: the round trip through stock diffusers, loading, refusals, and use without fewstep."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel, sample_consistency
from fewstep.students.grid import StepGrid, solve_grid
from fewstep.students.load import load_student
from fewstep.students.save import round_trip, save_student
from fewstep.teachers.load import ddpm_model, save_teacher
from fewstep.teachers.network import build_scheduler

Build = Callable[..., UNet2DModel]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def original(tiny_unet: Build) -> ConsistencyModel:
    return ConsistencyModel(tiny_unet(seed=5, dropout=0.2), sigma_min=0.0022, grid=solve_grid(0.65, 0.0022, 80.0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, original: ConsistencyModel) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "student"
    save_student(original, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_stock_diffusers_makes_the_same_images(
    tiny_unet: Build, tmp_path: Path, capfd: pytest.CaptureFixture[str], layout: torch.memory_format
):
    unet = tiny_unet(dropout=0.2).to(memory_format=layout)  # type: ignore[call-arg]
    model = ConsistencyModel(unet, grid=solve_grid(0.82, 0.002, 80.0)).train()
    differences = save_student(model, tmp_path / "student")
    assert list(differences) == [1, 2, 4]
    assert max(differences.values()) < 1e-5
    assert model.training  # saving works on a copy
    assert capfd.readouterr() == ("", "")


def test_a_grid_of_four_is_checked_at_the_steps_it_has(tiny_unet: Build, tmp_path: Path):
    model = ConsistencyModel(tiny_unet(), sigma_max=20.0, sigma_data=0.5, grid=StepGrid(num_train_timesteps=4, rho=9.0))
    assert list(save_student(model, tmp_path / "student")) == [1, 2]


def test_a_difference_is_an_error(saved: Path, tiny_unet: Build):
    with pytest.raises(ValueError, match=r"stock diffusers differs by .* at 1 steps .*was not saved"):
        round_trip(ConsistencyModel(tiny_unet(seed=6), sigma_min=0.0022), saved)


def test_loading_gives_the_same_student(saved: Path, original: ConsistencyModel):
    model = load_student(saved)
    assert isinstance(model, ConsistencyModel)
    assert (model.sigma_min, model.sigma_max) == (original.sigma_min, original.sigma_max)
    assert (model.scaling, model.space, model.grid) == (original.scaling, original.space, original.grid)
    assert model.step_sigmas(2)[1] == pytest.approx(0.65, rel=1e-4)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    z = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = [sample_consistency(m, [80.0], lambda: z) for m in (model, original.clone().eval())]
    assert torch.equal(images[0], images[1])


def change(file: str, **values: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | values))

    return apply


def drop_a_tensor(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state["conv_out.bias"]
    save_file(state, folder / WEIGHTS)


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no model_index.json"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "index no JSON": (lambda f: (f / "model_index.json").write_text("{"), "is not valid JSON"),
    "index no object": (lambda f: (f / "model_index.json").write_text("[]"), "names no ConsistencyModelPipeline"),
    "other pipeline": (change("model_index.json", _class_name="DDPMPipeline"), "names no ConsistencyModelPipeline"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json: no such file"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:1000]), "cannot be loaded"),
    "tensor missing": (drop_a_tensor, "conv_out.bias"),
    "only a pickle": (only_a_pickle, "cannot be loaded as a student .*safetensors"),
    "class labels": (change("unet/config.json", num_class_embeds=10), r"missing_keys \['class_embedding.weight'\]"),
    "not square": (change("unet/config.json", sample_size=[8, 16]), r"sample_size: \[8, 16\]: .*square"),
    "sigma a word": (change(SCHEDULER, sigma_min="small"), "cannot be loaded as a student"),
    "sigma negative": (change(SCHEDULER, sigma_min=-1.0), r"must be 0 < sigma_min < sigma_max"),
    "sigma order": (change(SCHEDULER, sigma_min=80.0, sigma_max=80.0), r"must be 0 < sigma_min < sigma_max"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_naming_the_folder(folder: Path, name: str, capfd: pytest.CaptureFixture[str]):
    fault, expected = FAULTS[name]
    fault(folder)
    with pytest.raises(UserError, match=expected) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_teachers_folder_is_no_student(tiny_unet: Build, tmp_path: Path):
    scheduler = build_scheduler(1000, "linear", "v_prediction")
    save_teacher(ddpm_model(tiny_unet(), scheduler), scheduler, tmp_path / "teacher")
    with pytest.raises(UserError, match="names no ConsistencyModelPipeline"):
        load_student(tmp_path / "teacher")


WITHOUT_FEWSTEP = """
import sys
sys.modules["fewstep"] = None
import numpy, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(0)
images = pipeline(batch_size=2, num_inference_steps=1, generator=generator, output_type="np").images
assert images.shape == (2, 8, 8, 1) and numpy.isfinite(images).all() and images.std() > 0, images
print(type(pipeline).__name__, float(numpy.float64(images).sum()))
"""


def test_the_folder_is_used_without_fewstep(saved: Path, original: ConsistencyModel):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FEWSTEP, str(saved)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    name, total = done.stdout.split()
    assert name == "ConsistencyModelPipeline"
    z = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = sample_consistency(original.clone().eval(), original.step_sigmas(1), lambda: z)
    assert float(total) == pytest.approx(float((images / 2 + 0.5).double().sum()), abs=1e-3)
