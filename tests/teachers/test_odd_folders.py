"""Folders that are not what they look like: loading and `inspect` say the same of them, in one line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchHeunDiscreteScheduler, ScoreSdeVeScheduler, UNet2DModel

from fewstep.errors import UserError
from fewstep.pipeline.cli.main import main
from fewstep.students.convert import check_convertible
from fewstep.teachers.describe import describe
from fewstep.teachers.load import read_teacher
from small_unet import UNET

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def model(folder: Path, scheduler: Any = None, **changes: Any) -> Path:
    UNet2DModel(**UNET | changes).save_pretrained(folder / "unet")
    (scheduler or DDPMScheduler()).save_pretrained(folder / "scheduler")
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path) -> bool:
    try:
        check_convertible(read_teacher(folder)[0], 1.0)
    except UserError:
        return True
    return False


def told(folder: Path) -> str:
    """Why inspect says that a folder cannot be distilled; "" where it can."""
    try:
        return describe(folder)["why_not"] or ""
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("scheduler", "changes", "why"),
    [
        (
            FlowMatchHeunDiscreteScheduler(),
            {},
            "FlowMatchHeunDiscreteScheduler': is a scheduler of a family",
        ),
        (ScoreSdeVeScheduler(), {"time_embedding_type": "fourier"}, "center_input_sample must be true"),
        (EDMEulerScheduler(sigma_min=100.0), {}, r"must be 0 < sigma_min < sigma_max"),
    ],
)
def test_families_that_would_be_taken_for_others_are_refused_by_name(tmp_path, scheduler, changes, why):
    folder = model(tmp_path / "model", scheduler, **changes)
    assert why in told(folder)
    assert refused(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"num_class_embeds": "10"}),
        ("unet/config.json", {"num_class_embeds": 10.0}),
        ("unet/config.json", {"sample_size": [[8], [8]]}),
        ("unet/config.json", {"sample_size": 10**7}),
        ("unet/config.json", {"sample_size": [8, 16]}),
        ("fewstep.json", {"scaling": {"name": "edm", "sigma_data": "x"}, "sigma_min": 0.1, "sigma_max": 80.0}),
        ("fewstep.json", {"scaling": {"name": "edm"}, "sigma_min": 80.0, "sigma_max": 0.1}),
        ("fewstep.json", {"null_class": "yes"}),
        ("scheduler/scheduler_config.json", {"_class_name": "KarrasVeScheduler"}),
    ],
)
def test_what_loading_refuses_inspect_calls_so_too(tmp_path, file, values):
    folder = model(tmp_path / "model")
    (folder / "fewstep.json").write_text("{}")
    change(folder / file, **values)
    assert refused(folder)
    assert told(folder)


def test_a_pipe_in_the_place_of_weights_is_not_waited_for_and_variants_are_not_counted(tmp_path):
    folder = model(tmp_path / "model")
    count = describe(folder)["parameters"]
    shutil.copy(folder / WEIGHTS, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert describe(folder)["parameters"] == count
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert "no safetensors weights" in told(folder)
    assert refused(folder)


def test_a_run_and_a_folder_without_a_scheduler_say_what_to_give(tmp_path, capsys):
    model(tmp_path / "run" / "teacher")
    (tmp_path / "run" / "config.json").write_text("{}")
    shutil.rmtree(model(tmp_path / "bare") / "scheduler")
    assert main(["inspect", str(tmp_path / "run")]) == 2
    assert f"is a run: give {tmp_path / 'run' / 'teacher'}" in capsys.readouterr().err
    assert "scheduler_config.json: no such file" in told(tmp_path / "bare")
    assert main(["inspect", str(tmp_path / "bare"), "--revision", "v1"]) == 2
    assert "--revision: 'v1': is of a hub id" in capsys.readouterr().err
