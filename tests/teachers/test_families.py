"""Models of every family, as their folders lie about: the denoiser that each becomes is its paper's formula."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.convert import convert_teacher, student_network
from fewstep.students.save import save_student
from fewstep.teachers.describe import describe
from fewstep.teachers.interfaces import Condition
from fewstep.teachers.load import load_teacher, read_teacher, save_teacher
from fewstep.teachers.scaling import EDM, VE, FlowMatching
from small_unet import UNET

SIGMAS = torch.tensor([0.02, 0.3, 1.0, 5.0, 40.0])
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained_betas": {"trained_betas": [0.0001 * n for n in range(1, 200)], "num_train_timesteps": 199},
    "zero SNR": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}
NCSNPP: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "mid_block_scale_factor": math.sqrt(2),
    "norm_num_groups": 4,
    "norm_eps": 1e-6,
}


def unet(**changes: Any) -> UNet2DModel:
    torch.manual_seed(3)
    return UNet2DModel(**UNET | changes).eval()


def noisy(channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand((len(SIGMAS), channels, 8, 8), generator=generator) * 2 - 1
    return x_0 + SIGMAS.reshape(-1, 1, 1, 1) * torch.randn(x_0.shape, generator=generator)


def ddpm_sigmas(options: dict[str, Any]) -> np.ndarray:
    """Noise levels of a schedule in float64, by the papers' formulas; the infinite one left out."""
    steps = options.get("num_train_timesteps", 1000)
    start, end = options.get("beta_start", 1e-4), options.get("beta_end", 0.02)
    kind = options.get("beta_schedule", "linear")
    if "trained_betas" in options:
        betas = np.asarray(options["trained_betas"])
    elif kind == "squaredcos_cap_v2":
        f = [math.cos((n / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(steps + 1)]
        betas = np.minimum(1 - np.divide(f[1:], f[:-1]), 0.999)
    else:
        even = np.linspace(0, 1, steps)
        betas = {
            "linear": start + (end - start) * even,
            "scaled_linear": (start**0.5 + (end**0.5 - start**0.5) * even) ** 2,
            "sigmoid": (end - start) / (1 + np.exp(6 - 12 * even)) + start,
        }[kind]
    kept = np.cumprod(1 - betas)
    if options.get("rescale_betas_zero_snr"):
        root = kept**0.5
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - kept) / kept)


def close(found: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the largest of what the denoiser is put together of."""
    error = (found - wanted).abs().flatten(1).amax(1)
    scale = noisy(found.shape[1]).abs().flatten(1).amax(1)
    assert (error <= 1e-5 * scale).all(), error / scale


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_a_ddpm_of_any_prediction_and_schedule_is_the_formula_in_float64(tmp_path, prediction, schedule):
    options = SCHEDULES[schedule] | {"prediction_type": prediction}
    network, x = unet(), noisy()
    DDPMPipeline(unet=network, scheduler=DDPMScheduler(**options)).save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    found, sigmas = teacher(x, SIGMAS), ddpm_sigmas(SCHEDULES[schedule])
    table = teacher.space.table  # as diffusers has it, from float32: a network was trained at these levels
    assert table is not None
    np.testing.assert_allclose(table[np.isfinite(sigmas)], sigmas[np.isfinite(sigmas)], rtol=2e-3)
    logs = table.log().numpy()
    t = torch.from_numpy(np.interp(SIGMAS.double().log(), logs, np.arange(len(logs))))
    exact, s, x = copy.deepcopy(network).double(), SIGMAS.double().reshape(-1, 1, 1, 1), x.double()
    root = (1 + s**2).sqrt()
    output = exact(x / root, t).sample
    wanted = {"epsilon": x - s * output, "v_prediction": x / root**2 - s / root * output, "sample": output}[prediction]
    close(found, wanted)


FAMILIES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "edm": (EDMEulerScheduler(sigma_data=0.7, sigma_max=60.0), UNET, {"sigma_max": 60.0}),
    "flow_matching": (FlowMatchEulerDiscreteScheduler(shift=3.0), UNET, {}),
    "ve": (ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0), NCSNPP, {"sigma_min": 0.02, "sigma_max": 100.0}),
}


def family(name: str, folder: Path) -> UNet2DModel:
    """A model of a family as diffusers has it: unet/ and scheduler/; of VE its own pipeline's folder."""
    scheduler, options, _ = FAMILIES[name]
    network = unet(**options)
    if name == "ve":
        ScoreSdeVePipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    else:
        network.save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")
    return network


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_other_families_are_known_by_their_scheduler_and_are_their_formula_in_float64(tmp_path, name):
    network = family(name, tmp_path / "teacher")
    x = noisy(network.config["in_channels"])
    teacher, scheduler = read_teacher(tmp_path / "teacher")
    assert (scheduler, teacher.scaling.name) == (None, name)
    exact, s, ends = copy.deepcopy(network).double(), SIGMAS.double().reshape(-1, 1, 1, 1), FAMILIES[name][2]
    y = x.double()
    if name == "edm":
        sd = 0.7
        root = (s**2 + sd**2).sqrt()
        wanted = (sd / root) ** 2 * y + s * sd / root * exact(y / root, s.flatten().log() / 4).sample
    elif name == "flow_matching":
        t = s / (1 + s)
        wanted = y / (1 + s) - t * exact(y / (1 + s), 1000 * t.flatten()).sample
    else:  # images in [0, 1]: y = (x + 1)/2 with half the noise, and the network returns the score there
        y, s = (y + 1) / 2, s / 2
        wanted = 2 * (y + s**2 * exact(y, s.flatten()).sample) - 1
    close(teacher.eval()(x, SIGMAS), wanted)
    assert {key: getattr(teacher.space, key) for key in ends} == ends
    found = describe(tmp_path / "teacher")
    assert (found["prediction"], found["route"]) == (name, "fold" if name == "edm" else "regress")
    assert found["sigma_max"] == teacher.space.sigma_max
    save_teacher(teacher, None, tmp_path / "again")  # as a run keeps it
    close(load_teacher(tmp_path / "again")(x, SIGMAS), wanted)


@torch.no_grad()
def test_a_student_of_a_score_network_starts_near_it_where_noise_is_small_and_loads_in_stock_diffusers(tmp_path):
    family("ve", tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher")
    with torch.enable_grad():
        student, exact = convert_teacher(
            teacher, sigma_min=0.002, sigma_max=80.0, refit_steps=1500, generator=torch.Generator().manual_seed(0)
        )
    assert not exact
    assert student.network.config["time_embedding_type"] == "positional"
    x_0, sigma = torch.rand(64, 3, 8, 8) * 2 - 1, torch.full((64,), 0.05)
    x = x_0 + 0.05 * torch.randn_like(x_0)
    own, theirs = (model.eval()(x, sigma) for model in (student, teacher))
    assert (own - theirs).square().mean().sqrt() < 0.25 * (theirs - x).square().mean().sqrt()
    assert max(save_student(student, tmp_path / "student").values()) < 1e-4


def flat(folder: Path) -> Path:
    """The parts of a pipeline at the root, as google's DDPMs are on the hub."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            shutil.move(file, folder / file.name)
        (folder / part).rmdir()
    return folder


@torch.no_grad()
def test_the_same_model_in_other_layouts_and_pipelines_is_the_same_denoiser(tmp_path):
    network, x = unet(), noisy()
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    DDIMPipeline(unet=network, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    for part in ("unet", "scheduler"):
        shutil.copytree(tmp_path / "ddpm" / part, tmp_path / "bare" / part)
    flat(Path(shutil.copytree(tmp_path / "ddpm", tmp_path / "flat")))
    shutil.copytree(tmp_path / "flat", tmp_path / "bare flat")
    (tmp_path / "bare flat" / "model_index.json").unlink()
    unet(sample_size=[8, 8]).save_pretrained(tmp_path / "bare" / "unet")
    wanted = load_teacher(tmp_path / "ddpm")(x, SIGMAS)
    for name in ("ddim", "bare", "flat", "bare flat"):
        assert torch.equal(load_teacher(tmp_path / name)(x, SIGMAS), wanted), name
        assert describe(tmp_path / name)["route"] == "regress", name


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub's cache with two revisions of owner/model: main, and v1, whose weights are others."""
    folder = tmp_path / "hub" / "models--owner--model"
    for commit, seed in (("a" * 40, 0), ("b" * 40, 1)):
        torch.manual_seed(seed)
        pipeline = DDPMPipeline(unet=UNet2DModel(**UNET), scheduler=DDPMScheduler())
        pipeline.save_pretrained(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "refs" / "v1").write_text("b" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def test_a_hub_id_is_read_from_its_cache_at_a_revision(cache):
    main, other = load_teacher("owner/model"), load_teacher("owner/model", revision="v1")
    for teacher, commit in ((main, "a" * 40), (other, "b" * 40)):
        wanted = load_file(cache / "snapshots" / commit / "unet" / "diffusion_pytorch_model.safetensors")
        assert torch.equal(teacher.network.state_dict()["conv_in.weight"], wanted["conv_in.weight"])
    with pytest.raises(UserError, match=r"^owner/model, revision v2: .*has nothing of it cached"):
        load_teacher("owner/model", revision="v2")
    with pytest.raises(UserError, match=r"^teacher\.revision: 'v1': is of a hub id, and .* is a folder"):
        load_teacher(cache / "snapshots" / ("a" * 40), revision="v1")


def test_a_hub_model_that_has_only_half_precision_is_read_in_it(cache):
    for unet in cache.glob("snapshots/*/unet"):
        (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert load_teacher("owner/model").space.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("GatedRepoError", "is gated on the hub: ask for access"),
        ("RepositoryNotFoundError", "no such model on the hub; a private one needs you logged in"),
        ("RevisionNotFoundError", "no such branch, tag or commit"),
        ("IncompleteSnapshotError", "is cached in part, and the hub cannot be reached"),
        ("LocalEntryNotFoundError", "the hub cannot be reached and has nothing of it cached"),
        ("OfflineModeIsEnabled", "the hub cannot be reached and has nothing of it cached"),
        ("TimeoutError", "not to be had from the hub"),
    ],
)
def test_each_way_in_which_the_hub_fails_has_its_own_line(monkeypatch, name, fault):
    from huggingface_hub import errors

    kind = getattr(errors, name, TimeoutError)

    def fail(*_: object, **__: object) -> None:
        error = kind.__new__(kind)
        error.args = ("a text of the library",)
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=fault) as caught:
        load_teacher("owner/model", revision="main")
    assert str(caught.value).startswith("owner/model, revision main: ")


def conditional(folder: Path, **options: Any) -> UNet2DModel:
    network = unet(num_class_embeds=4)
    network.save_pretrained(folder / "unet")
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    if options:
        (folder / "fewstep.json").write_text(json.dumps(options))
    return network


@torch.no_grad()
def test_the_last_class_means_none_where_the_folder_or_the_caller_says_so(tmp_path):
    x, labels = noisy(), torch.tensor([0, 1, 2, 0, 1])
    conditional(tmp_path / "plain")
    conditional(tmp_path / "own", null_class=True)
    plain, own = load_teacher(tmp_path / "plain"), load_teacher(tmp_path / "own")
    told = load_teacher(tmp_path / "plain", null_class=True)
    assert [each.space.num_classes for each in (plain, own, told)] == [4, 3, 3]
    given = Condition(labels=labels)
    assert torch.equal(plain(x, SIGMAS, given), own(x, SIGMAS, given))
    assert torch.equal(own(x, SIGMAS), plain(x, SIGMAS, Condition(labels=torch.full((5,), 3))))
    with pytest.raises(UserError, match=r"^labels: this model is class-conditional: give labels 0 to 3"):
        plain(x, SIGMAS)
    save_teacher(*read_teacher(tmp_path / "own"), tmp_path / "again")
    assert load_teacher(tmp_path / "again").space == own.space
    unet().save_pretrained(tmp_path / "plain" / "unet")
    with pytest.raises(UserError, match="null_class"):
        load_teacher(tmp_path / "plain", null_class=True)


def test_a_student_has_the_rows_of_the_classes_and_not_that_of_none(tmp_path):
    network = conditional(tmp_path / "teacher", null_class=True)
    made = student_network(load_teacher(tmp_path / "teacher"))
    assert made.config["num_class_embeds"] == 3
    assert torch.equal(made.state_dict()["class_embedding.weight"], network.state_dict()["class_embedding.weight"][:3])
    assert max(save_student(ConsistencyModel(made), tmp_path / "student").values()) < 1e-4


@pytest.mark.parametrize(
    ("file", "changes", "fault"),
    [
        ("unet/config.json", {"class_embed_type": "identity"}, "class_embed_type"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler", "sigma_max": "x"}, "sigma_max: 'x'"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "prediction_type: 'v_prediction'"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0}, "sigma_min: 0"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "is UNet2DConditionModel, not UNet2DModel"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline makes images of text, which is not supp"),
        ("fewstep.json", {"null_class": "yes"}, r"fewstep\.json: null_class: 'yes': must be true or false"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, file, changes, fault):
    conditional(tmp_path / "teacher")
    path = tmp_path / "teacher" / file
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | changes))
    with pytest.raises(UserError, match=fault):
        load_teacher(tmp_path / "teacher")


def test_weights_that_are_not_finite_are_refused_by_their_name(tmp_path):
    conditional(tmp_path / "teacher")
    path = tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.bias"][2] = math.nan
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"its weights are damaged: mid_block\.resnets\.0\.conv1\.bias holds NaN"):
        load_teacher(tmp_path / "teacher")


@pytest.mark.parametrize("scaling", [EDM(), FlowMatching(), VE()])
def test_scalings_that_are_trained_here_have_noise_levels(scaling):
    from fewstep.teachers.objective import LEVELS

    levels = LEVELS[type(scaling)]
    drawn = levels.at(torch.linspace(0.001, 0.999, 50, dtype=torch.float64))
    assert (drawn.diff() > 0).all()
    assert levels.ends[0] <= drawn[25] <= levels.ends[1]
