"""What inspect says of a model's folder: numbers as loading has them, decisions as conversion takes them, no torch."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, LCMScheduler, TCDScheduler, UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.errors import UserError
from fewstep.pipeline.cli.main import main
from fewstep.students.convert import check_convertible
from fewstep.teachers.describe import describe
from fewstep.teachers.interfaces import Space
from fewstep.teachers.load import read_teacher, save_teacher
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM, VE, FlowMatching
from small_unet import UNET


def saved(folder, scheduler=None, **changes):
    pipeline = DDPMPipeline(unet=UNet2DModel(**UNET | changes), scheduler=DDPMScheduler(**scheduler or {}))
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.001 * n for n in range(1, 200)]},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    ],
)
def test_numbers_are_those_that_loading_finds(tmp_path, prediction, schedule):
    folder = saved(tmp_path / "teacher", schedule | {"prediction_type": prediction})
    found, (teacher, _) = describe(folder), read_teacher(folder)
    assert found["sigma_min"] == pytest.approx(teacher.space.sigma_min, rel=1e-3)
    assert found["sigma_max"] == pytest.approx(teacher.space.sigma_max, rel=2e-2)  # of 1 - abar in float32
    assert found["parameters"] == sum(parameter.numel() for parameter in teacher.parameters())
    assert (found["family"], found["prediction"], found["shape"]) == ("DDPM", prediction, [1, 8, 8])
    assert found["precision"] == "float32"
    assert found["route"] == ("fold" if prediction == "v_prediction" else "regress")


@pytest.mark.parametrize(("scaling", "route"), [(EDM(0.5), "fold"), (FlowMatching(), "regress"), (VE(), "regress")])
def test_scalings_of_their_own(tmp_path, tiny_unet, scaling, route):
    space = Space(shape=(1, 8, 8), sigma_min=0.002, sigma_max=80.0)
    save_teacher(Preconditioned(tiny_unet(), scaling, space), None, tmp_path / "teacher")
    found = describe(tmp_path / "teacher")
    assert (found["prediction"], found["sigma_max"], found["route"]) == (scaling.name, 80.0, route)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"out_channels": 2},
        {"out_channels": 3},
        {"center_input_sample": True},
        {"time_embedding_type": "fourier"},
        {"sample_size": (8, 8)},
        {"num_class_embeds": 10},
        {"in_channels": 3, "out_channels": 3},
    ],
)
def test_it_says_no_where_loading_or_conversion_does(tmp_path, changes):
    folder = saved(tmp_path / "teacher", **changes)
    try:
        check_convertible(read_teacher(folder)[0], 80.0)
        refused = False
    except UserError:
        refused = True
    found = describe(folder)
    assert (found["route"] is None) == refused
    assert bool(found["why_not"]) == refused
    assert found["learned_variance"] == (changes == {"out_channels": 2})


def test_a_licence_is_what_the_card_states(tmp_path):
    folder = saved(tmp_path / "teacher")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A teacher\n")
    assert describe(folder)["licence"] == "apache-2.0"


def test_pickles_text_and_what_is_no_model_are_named(tmp_path, capsys):
    folder = saved(tmp_path / "teacher")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "are a pickle" in describe(folder)["why_not"]
    text = saved(tmp_path / "text")
    index = json.loads((text / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (text / "model_index.json").write_text(json.dumps(index))
    assert "makes images of text, which is not supported yet" in describe(text)["why_not"]
    (tmp_path / "empty").mkdir()
    for arguments in (["inspect", str(tmp_path / "empty")], ["inspect", str(tmp_path / "absent")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    weights = text / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"\xff" * 100)
    assert main(["inspect", str(text)]) == 2
    assert "is no safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
def test_noise_levels_that_a_scheduler_does_not_state_are_null_in_json(tmp_path, capsys, kind):
    folder = saved(tmp_path)
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({**kind().config, "_class_name": kind.__name__})
    )
    capsys.readouterr()
    assert main(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["sigma_min"], found["sigma_max"], found["route"]) == (None, None, None)


def test_no_torch_is_imported(tmp_path):
    code = "import sys; from fewstep.pipeline.cli.main import main; main(sys.argv[1:]); "
    code += "assert not {'torch', 'diffusers'} & set(sys.modules)"
    folder = saved(tmp_path / "teacher")
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", folder, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["route"] == "regress"


def test_the_arithmetic_of_an_evaluation_is_what_torch_counts_but_for_the_products_of_attention(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    folder = saved(tmp_path / "teacher", block_out_channels=(16, 32), layers_per_block=2, **blocks)
    network = read_teacher(folder)[0].network
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert describe(folder)["gflop"] == pytest.approx(counter.get_total_flops() / 1e9, rel=0.05)
