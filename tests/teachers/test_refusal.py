"""One function decides: inspect gives a route if and only if a folder loads and a student can be made of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    LDMPipeline,
    UNet2DModel,
    UniPCMultistepScheduler,
    VQModel,
)
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.students.convert import convert_teacher
from fewstep.teachers.describe import describe
from fewstep.teachers.load import load_teacher, read_teacher, save_teacher
from fewstep.teachers.schedule import vp_table
from small_unet import UNET

NAME = "unet/diffusion_pytorch_model"
SAFE = f"{NAME}.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
TWO = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "block_out_channels": (8, 8)}
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path):
    """The folder of a sound DDPM, as diffusers saves it."""
    torch.manual_seed(0)
    DDPMPipeline(unet=UNet2DModel(**UNET), scheduler=DDPMScheduler()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def config(file: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def unet(**changes: Any) -> Change:
    return lambda folder: UNet2DModel(**UNET | changes).save_pretrained(folder / "unet")


def noise(scheduler: Any, **values: Any) -> Change:
    def change(folder: Path) -> None:
        scheduler.save_pretrained(folder / "scheduler")
        config("scheduler/scheduler_config.json", **values)(folder)

    return change


def latent(folder: Path) -> None:
    blocks = {"block_out_channels": (8,), "norm_num_groups": 4, "num_vq_embeddings": 4}
    pipeline = LDMPipeline(vqvae=VQModel(**blocks), unet=UNet2DModel(**UNET), scheduler=DDIMScheduler())
    pipeline.save_pretrained(folder)


def variant(*names: str) -> Change:
    def change(folder: Path) -> None:
        half = {name: value.half() for name, value in load_file(folder / SAFE).items()}
        for name in names:
            save_file(half, folder / f"{NAME}.{name}.safetensors", metadata={"format": "pt"})
        (folder / SAFE).unlink()

    return change


def parts(folder: Path) -> None:
    (folder / SAFE).unlink()
    torch.manual_seed(0)
    UNet2DModel(**UNET).save_pretrained(folder / "unet", max_shard_size="20KB")


def part_missing(folder: Path) -> None:
    parts(folder)
    next(folder.glob("unet/*-of-*.safetensors")).unlink()


def pointer(file: str) -> Change:
    return lambda folder: (folder / file).write_text(POINTER)


def pickle(folder: Path) -> None:
    (folder / SAFE).rename(folder / f"{NAME}.bin")


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def cut(folder: Path) -> None:
    (folder / SAFE).write_bytes((folder / SAFE).read_bytes()[:-4])


SCHEDULER = "scheduler/scheduler_config.json"
DECODED = ["diffusers", "AutoencoderKL"]
REFUSED: dict[str, tuple[Change, str]] = {
    "latents": (latent, "its images are decoded by vqvae (VQModel): a latent model, which is not supported yet"),
    "vae": (config("model_index.json", vae=DECODED), "decoded by vae (AutoencoderKL): a latent model"),
    "encoder": (config("model_index.json", encoder=["transformers", "CLIPModel"]), "has encoder (CLIPModel) beside"),
    "two channels": (unet(in_channels=2, out_channels=2), "2 channels (in_channels); only grey (1) and RGB (3)"),
    "four channels": (unet(in_channels=4, out_channels=4), "4 channels (in_channels)"),
    "odd size": (unet(**TWO, sample_size=7), "sample_size: 7: must be divisible by 2"),
    "28 at four levels": (
        unet(sample_size=28, **{key: value * 2 for key, value in TWO.items()}),
        "sample_size: 28: must be divisible by 8, as the network halves its images 3 times (block_out_channels has 4 "
        "entries); 24 or 32 fits",
    ),
    "oblong": (unet(sample_size=(8, 16)), "sample_size: [8, 16]: only square images"),
    "huge": (config("unet/config.json", sample_size=5000), "sample_size: 5000: must be the images' side in pixels"),
    "flow under another name": (noise(UniPCMultistepScheduler(use_flow_sigmas=True)), "use_flow_sigmas: True: is not"),
    "continuous": (noise(EulerDiscreteScheduler(timestep_type="continuous")), "timestep_type: 'continuous': is not"),
    "inverted flow": (noise(FlowMatchEulerDiscreteScheduler(invert_sigmas=True)), "invert_sigmas: True: is not"),
    "edm of v": (noise(EDMDPMSolverMultistepScheduler(prediction_type="v_prediction")), "prediction_type: 'v_pred"),
    "edm held": (noise(EDMDPMSolverMultistepScheduler(thresholding=True)), "thresholding: True: is not supported"),
    "flow prediction": (config(SCHEDULER, prediction_type="flow_prediction"), "'flow_prediction': use one of epsilon"),
    "few steps": (noise(LCMScheduler()), "it is a student already"),
    "another beta": (config(SCHEDULER, _class_name="IPNDMScheduler"), "is a scheduler of a family that is not known"),
    "cosine": (config(SCHEDULER, _class_name="CosineDPMSolverMultistepScheduler"), "family that is not known"),
    "contradiction": (config(SCHEDULER, predict_epsilon=False), "contradicts prediction_type 'epsilon'"),
    "a bound below 1": (config(SCHEDULER, thresholding=True, sample_max_value=0.5), "sample_max_value: 0.5: must be"),
    "several variants": (variant("fp16", "ema"), "several variants"),
    "part missing": (part_missing, "does not name the tensors of the parts that are there"),
    "pickle": (pickle, "are a pickle"),
    "pickle beside a variant": (both(variant("ema"), lambda f: (f / f"{NAME}.bin").touch()), "are a pickle"),
    "pointer": (pointer(SAFE), f"{SAFE}: is a git-lfs pointer, not the file itself: run git lfs pull"),
    "pickled pointer": (both(pickle, pointer(f"{NAME}.bin")), f"{NAME}.bin: is a git-lfs pointer"),
    "config pointer": (pointer("unet/config.json"), "unet/config.json: is a git-lfs pointer"),
    "index pointer": (pointer("model_index.json"), "model_index.json: is a git-lfs pointer"),
    "cut short": (cut, "its length is not what its header says"),
    "another network": (config("unet/config.json", _class_name="UNet1DModel"), "its network is UNet1DModel"),
    "no classes": (lambda f: (f / "fewstep.json").write_text('{"null_class": true}'), "null_class is true, but there"),
    "scaling": (
        lambda f: (f / "fewstep.json").write_text(
            '{"scaling": {"name": "edm", "a": 1}, "sigma_min": 1, "sigma_max": 2}'
        ),
        "scaling.a: is no number of edm",
    ),
    "quantised": (config("unet/config.json", quantization_config={"quant_method": "x"}), "quantised weights are not"),
}
TAKEN: dict[str, Change] = {
    "as saved": lambda folder: None,
    "two levels": unet(**TWO),
    "a part that is left out": config("model_index.json", vqvae=[None, None], mel=["diffusers", "Mel"]),
    "shifted flow": noise(FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)),
    "another class": config(SCHEDULER, _class_name="HeunDiscreteScheduler", use_karras_sigmas=True),
    "x0 of old": lambda f: (f / SCHEDULER).write_text('{"predict_epsilon": false, "beta_schedule": "linear"}'),
    "variant": variant("fp16"),
    "parts": parts,
    "old class in the index": config("model_index.json", unet=["diffusers", "UNetUnconditionalModel"]),
    "old class of the network": config("unet/config.json", _class_name="UNetUnconditionalModel"),
    "an unknown field": config(SCHEDULER, tensor_format="pt"),
    "thresholding": config(SCHEDULER, thresholding=True, sample_max_value=2.0),
}


def told(folder: Path) -> str:
    """Why inspect gives no route, or ""."""
    try:
        found = describe(folder)
    except UserError as error:
        return str(error)
    assert (found["route"] is None) == bool(found["why_not"])
    return found["why_not"] or ""


def distilled(folder: Path) -> str:
    """Why a folder cannot be loaded or made a student of, or ""."""
    try:
        teacher = read_teacher(folder)[0]
        convert_teacher(teacher, sigma_min=0.1, sigma_max=1.0, refit_steps=1, generator=torch.Generator())
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", REFUSED)
def test_inspect_refuses_what_loading_refuses_with_the_same_words(folder, name):
    change, says = REFUSED[name]
    change(folder)
    assert says in told(folder)
    assert says in distilled(folder)
    assert str(folder) in distilled(folder)


@pytest.mark.parametrize("name", TAKEN)
def test_inspect_gives_a_route_to_what_can_be_distilled(folder, name):
    TAKEN[name](folder)
    assert (told(folder), distilled(folder)) == ("", "")


def test_fields_of_an_old_diffusers_are_refused_in_place_of_todays_and_others_are_named(folder):
    config("unet/config.json", resnet_eps=1e-6, colour="red")(folder)
    config(SCHEDULER, timestep_values=None)(folder)
    assert describe(folder)["ignored"] == ["config.json: colour", "scheduler_config.json: timestep_values"]
    values = json.loads((folder / "unet/config.json").read_text())
    del values["norm_eps"]
    (folder / "unet/config.json").write_text(json.dumps(values))
    for said in (told(folder), distilled(folder)):
        assert "unet/config.json: resnet_eps: 1e-06: is from an old diffusers and is ignored; name it norm_eps" in said


@pytest.mark.parametrize(("old", "prediction"), [(False, "sample"), (True, "epsilon")])
def test_predict_epsilon_of_an_old_diffusers_is_what_it_meant_and_a_copy_says_so_in_todays_words(
    folder, tmp_path, old, prediction
):
    values = json.loads((folder / SCHEDULER).read_text()) | {"predict_epsilon": old}
    del values["prediction_type"]
    (folder / SCHEDULER).write_text(json.dumps(values))
    assert describe(folder)["prediction"] == prediction
    teacher, scheduler = read_teacher(folder)
    assert teacher.scaling.name == prediction
    save_teacher(teacher, scheduler, tmp_path / "copy")
    saved = json.loads((tmp_path / "copy" / SCHEDULER).read_text())
    assert saved["prediction_type"] == prediction
    assert "predict_epsilon" not in saved


def test_fields_that_are_left_out_have_the_default_of_their_own_class(folder):
    (folder / SCHEDULER).write_text('{"_class_name": "HeunDiscreteScheduler"}')
    teacher = load_teacher(folder)
    wanted = vp_table(DDPMScheduler(beta_start=0.00085, beta_end=0.012).alphas_cumprod)
    assert teacher.space.sigma_max == float(wanted[-1])
    assert teacher.space.clamp is None
    assert describe(folder)["sigma_max"] == pytest.approx(teacher.space.sigma_max, rel=2e-2)


def test_a_single_variant_is_read_as_float32_and_copied_as_a_plain_folder(folder, tmp_path):
    wanted = {name: value.half().float() for name, value in load_file(folder / SAFE).items()}
    variant("fp16")(folder)
    assert describe(folder)["precision"] == "float16"
    teacher, scheduler = read_teacher(folder)
    save_teacher(teacher, scheduler, tmp_path / "copy")
    found = load_file(tmp_path / "copy" / SAFE)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert found["conv_in.weight"].dtype == torch.float32


def test_a_network_that_fails_on_its_own_images_is_one_line(folder):
    unet(**TWO, downsample_padding=3)(folder)
    assert "its network cannot be evaluated on its own images" in distilled(folder)


def test_a_network_whose_output_is_not_finite_is_one_line(folder):
    state = load_file(folder / SAFE)
    state["conv_out.weight"].fill_(3e38)
    save_file(state, folder / SAFE, metadata={"format": "pt"})
    assert "its network makes NaN or infinity of noise" in distilled(folder)
