"""A student of DDIM steps: it is its teacher, stock diffusers samples it to the same images, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel

from fewstep.errors import UserError
from fewstep.students.ddim import DDIMStudent, ddim_student
from fewstep.students.load import is_student, load_student
from fewstep.students.save import save_student
from fewstep.teachers.load import ddpm_model
from fewstep.teachers.preconditioned import Preconditioned

Build = Callable[..., UNet2DModel]


def teacher_of(unet: UNet2DModel, **options: Any) -> tuple[Preconditioned, DDPMScheduler]:
    given: dict[str, Any] = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"} | options
    scheduler = DDPMScheduler(**given)
    return ddpm_model(unet, scheduler), scheduler


SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "x0": {"beta_schedule": "linear", "prediction_type": "sample"},
    "x0 from 20,291": {"prediction_type": "sample"},
    "zero SNR": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    "betas": {"trained_betas": torch.linspace(1e-4, 0.2, 50).tolist(), "num_train_timesteps": 50},
    "no multiple of 4": {"num_train_timesteps": 90},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_its_teacher_and_stock_diffusers_makes_its_images(tiny_unet: Build, tmp_path: Path, name: str):
    teacher, scheduler = teacher_of(tiny_unet(seed=3, dropout=0.2), **SCHEDULES[name])
    model = ddim_student(teacher.eval(), scheduler)
    assert model.training
    sigma = torch.tensor([0.02, 1.0, teacher.space.sigma_max])
    x = sigma.reshape(-1, 1, 1, 1) * torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.clone().eval()(x, sigma), teacher(x, sigma))
    differences = save_student(model, tmp_path)  # refused above 1e-4
    assert list(differences) == [1, 2, 4]
    assert max(differences.values()) < 2e-5
    loaded = load_student(tmp_path)
    assert isinstance(loaded, DDIMStudent)
    assert torch.equal(loaded.space.table, model.space.table)  # type: ignore[arg-type]
    z = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = [each.plan(2).sample(each, lambda: z) for each in (loaded, model.clone().eval())]
    assert torch.equal(images[0], images[1])
    assert float(images[0].std()) > 0


def test_only_the_mean_of_a_learned_variance_is_kept(tiny_unet: Build):
    config: dict[str, Any] = dict(tiny_unet().config) | {"out_channels": 2}
    assert ddim_student(*teacher_of(UNet2DModel(**config))).network.config["out_channels"] == 1


def test_steps_are_ddims_trailing_timesteps(tiny_unet: Build):
    model = ddim_student(*teacher_of(tiny_unet()))
    assert model.timesteps(4) == [999, 749, 499, 249]
    assert model.most_steps == 1000


def test_other_teachers_are_refused(tiny_unet: Build):
    teacher, scheduler = teacher_of(tiny_unet(), prediction_type="epsilon")
    with pytest.raises(UserError, match=r"^teacher\.source: 'epsilon': .*prediction is v_prediction or sample"):
        ddim_student(teacher, scheduler)
    with pytest.raises(UserError, match=r"'v_prediction': .*needs one with a DDPM schedule"):
        ddim_student(teacher_of(tiny_unet())[0], None)


OTHERS: dict[str, Any] = {
    "timestep_spacing": "leading",
    "set_alpha_to_one": False,
    "clip_sample": True,
    "prediction_type": "epsilon",
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_ddim_pipeline_with_other_options_is_no_student(tiny_unet: Build, tmp_path: Path, key: str):
    save_student(ddim_student(*teacher_of(tiny_unet())), tmp_path)
    assert is_student(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: OTHERS[key]}))
    assert not is_student(tmp_path)
    with pytest.raises(UserError, match=rf"scheduler_config\.json: {key}: .* is not that of a student") as caught:
        load_student(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_stock_ddim_pipeline_is_no_student(tiny_unet: Build, tmp_path: Path):
    DDIMPipeline(tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path)
    assert not is_student(tmp_path)
