"""What a SUBJECT of `fewstep benchmark` opens, that its images are what stock diffusers makes, and what is refused."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from PIL import Image

from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.images import Generated, StoredImages
from fewstep.eval.interfaces import Sampler
from fewstep.eval.noise import KeyedNoise
from fewstep.pipeline.sampling.models import teacher_sampler
from fewstep.pipeline.sampling.stock import PipelineSampler
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.teachers.load import load_teacher

CPU = torch.device("cpu")


def opened(text) -> Sampler:
    """The subject that a text stands for, which must be something that samples."""
    subject = open_subject(str(text), CPU)[0]
    assert not isinstance(subject, StoredImages)
    return subject


def stock_images(pipeline: Any, count: int, seed: int, steps: int) -> np.ndarray:
    """What a stock pipeline makes from the noise of a seed, [N, H, W, C] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    generators = list(KeyedNoise((1, 8, 8), seed, 0, count).generators)
    return np.asarray(pipeline(count, num_inference_steps=steps, generator=generators, output_type="np").images)


@pytest.fixture
def ddim_folder(tiny_unet, tmp_path):
    """A stock DDIMPipeline folder: no class that fewstep makes."""
    DDIMPipeline(tiny_unet(), DDIMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "ddim")
    return tmp_path / "ddim"


@pytest.fixture
def pngs(tmp_path):
    """Twelve digits as PNG files, some in a sub-folder."""
    folder = tmp_path / "pngs"
    (folder / "more").mkdir(parents=True)
    Image.new("L", (90, 90)).save(folder / "grid.png")  # as `fewstep sample` leaves it: no sample
    for index, image in enumerate(digits()[0][:12]):
        place = folder if index < 6 else folder / "more"
        Image.fromarray(image[0].numpy()).save(place / f"{index:03d}.png")
    return folder


def test_a_teacher_and_a_student_of_a_run_are_the_run_s_own_samplers(tiny_run):
    teacher, student = opened(tiny_run / "teacher@ddim:2"), opened(tiny_run / "students" / "student@2")
    assert (teacher.name, teacher.nfe, teacher.shape) == (f"{tiny_run}/teacher@ddim:2", 2, (1, 8, 8))
    assert (teacher.label, student.label) == ("digits/teacher, DDIM, 2 steps", "digits/student, 2 steps")
    assert opened(tiny_run / "students" / "student").nfe == 1


def test_a_student_s_images_are_the_stock_pipeline_s(tiny_run):
    ours = Generated(opened(tiny_run / "students" / "student@2"), 3, 5, 5).images(0, 5)
    theirs = stock_images(ConsistencyModelPipeline.from_pretrained(tiny_run / "students" / "student"), 5, 3, 2)
    pixels = np.round(theirs * 255).astype(np.uint8)
    assert np.abs(ours.permute(0, 2, 3, 1).numpy().astype(int) - pixels).max() <= 1


def test_a_teacher_without_a_solver_is_called_as_its_users_call_it(tiny_run):
    teacher = opened(tiny_run / "teacher@3")
    assert (teacher.kind, teacher.nfe, len(teacher.schedule)) == ("pipeline", 3, 3)
    theirs = stock_images(DDPMPipeline.from_pretrained(tiny_run / "teacher"), 4, 0, 3)
    ours = teacher.sample(KeyedNoise((1, 8, 8), 0, 0, 4))
    np.testing.assert_allclose((ours.permute(0, 2, 3, 1).numpy() + 1) / 2, theirs, atol=1e-6)


def test_a_teacher_with_a_scaling_of_its_own_is_sampled_under_a_named_solver(edm_folder, tmp_path):
    sampler = opened(f"{edm_folder}@heun:18")
    assert (sampler.kind, sampler.nfe, sampler.shape) == ("teacher", 35, (1, 8, 8))
    noise = KeyedNoise((1, 8, 8), 0, 0, 2)
    own = teacher_sampler(load_teacher(edm_folder), "heun", 18)
    torch.testing.assert_close(sampler.sample(noise), own.sample(KeyedNoise((1, 8, 8), 0, 0, 2)))
    identity = open_subject(f"{edm_folder}@heun:18", CPU)[1]()
    shutil.copytree(edm_folder, tmp_path / "other")
    scaling = tmp_path / "other" / "fewstep.json"
    scaling.write_text(scaling.read_text().replace("0.5", "0.6"))
    assert open_subject(f"{tmp_path / 'other'}@heun:18", CPU)[1]() != identity
    with pytest.raises(UserError, match="name a solver"):
        open_subject(f"{edm_folder}@18", CPU)


def test_another_pipeline_is_measured_and_its_evaluations_counted(ddim_folder):
    own = opened(f"{ddim_folder}@5")
    assert (own.nfe, own.shape, own.num_classes, own.kind) == (5, (1, 8, 8), None, "pipeline")
    images = own.sample(KeyedNoise(own.shape, 0, 0, 3))
    assert images.shape == (3, 1, 8, 8)
    assert images.abs().max() <= 1
    again = own.sample(KeyedNoise(own.shape, 0, 1, 3))  # in another batch a processor may round otherwise
    torch.testing.assert_close(images[1:], again, rtol=0, atol=1e-5)
    assert opened(f"{ddim_folder}@ddim:7").schedule[0] == 99  # trailing: the first step is at the noise


@pytest.fixture
def conditional_folder(tmp_path):
    """A stock class-conditional ConsistencyModelPipeline folder of 3x8x8 images and 3 classes."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=3,
    )
    ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler()).save_pretrained(tmp_path / "conditional")
    return tmp_path / "conditional"


def test_a_conditional_pipeline_gets_the_class_of_each_image(conditional_folder):
    sampler = opened(f"{conditional_folder}@1")
    assert (sampler.num_classes, sampler.shape, sampler.nfe) == (3, (3, 8, 8), 1)
    images = Generated(sampler, 0, 6, 6).images(0, 6)
    assert torch.equal(Generated(sampler, 0, 6, 2).images(4, 6), images[4:])
    noise = KeyedNoise((3, 8, 8), 0, 0, 1)
    other = sampler.sample(noise, torch.tensor([2]))
    assert not torch.equal(other, sampler.sample(KeyedNoise((3, 8, 8), 0, 0, 1), torch.tensor([0])))


def test_guidance_that_doubles_the_batch_costs_two_evaluations_a_step():
    transformer = DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=1000,  # the pipeline takes class 1000 for none
    )
    scheduler: Any = DDIMScheduler()
    pipeline = DiTPipeline(transformer, AutoencoderKL(block_out_channels=(32,)), scheduler)
    sampler = PipelineSampler("guided", "DiT", pipeline, 3, None)
    assert (sampler.nfe, sampler.shape, sampler.label) == (6, (3, 4, 4), "DiT, 3 steps")
    assert sampler.networks == (transformer, pipeline.vae)


def test_a_hash_covers_weights_and_steps(ddim_folder):
    first = open_subject(f"{ddim_folder}@5", CPU)[1]()
    assert open_subject(f"{ddim_folder}@5", CPU)[1]() == first
    assert open_subject(f"{ddim_folder}@6", CPU)[1]() != first
    config = ddim_folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.03}))
    assert open_subject(f"{ddim_folder}@5", CPU)[1]() != first


def test_a_folder_and_an_npz_of_the_same_images_are_the_same(pngs, tmp_path):
    images = digits()[0][:12]
    np.savez(tmp_path / "images.npz", images.permute(0, 2, 3, 1).numpy())
    (folder, one), (file, two) = open_subject(str(pngs), CPU), open_subject(str(tmp_path / "images.npz"), CPU)
    assert isinstance(folder, StoredImages)
    assert isinstance(file, StoredImages)
    assert one() == two()
    assert torch.equal(folder.block(0, 12).images(0, 12), images)
    assert torch.equal(file.block(1, 5).images(0, 5), images[5:10])


def wrong(tmp_path, tiny_run, pngs, form):
    arrays = {
        "float.npz": {"arr_0": np.zeros((4, 8, 8, 1), np.float32)},
        "flat.npz": {"arr_0": np.zeros((4, 64), np.uint8)},
        "two.npz": {"a": np.zeros(3), "b": np.zeros(3)},
        "object.npz": {"arr_0": np.array([{}], dtype=object)},
    }
    path = tmp_path / form
    if form in arrays:
        np.savez(path, **arrays[form])
    elif form == "text.npz":
        path.write_text("no archive")
    elif form == "mixed":
        shutil.copytree(pngs, path)
        Image.new("L", (9, 9)).save(path / "z.png")
    elif form == "corrupt":
        shutil.copytree(pngs, path)
        (path / "003.png").write_bytes((path / "003.png").read_bytes()[:40])
    elif form == "empty":
        path.mkdir()
    elif form == "pngs@4":
        return f"{pngs}@4"
    elif form == "run":
        return str(tiny_run)
    elif form in (
        "students/student@999",
        "students/student@ddim:2",
        "teacher@ddim:2000",
        "teacher@magic:3",
        "teacher@0",
    ):
        return str(tiny_run / form)
    return str(path)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("float.npz", r"holds float32 \(4, 8, 8, 1\); needed is uint8"),
        ("flat.npz", r"holds uint8 \(4, 64\)"),
        ("two.npz", "holds 2 arrays, none of them arr_0"),
        ("object.npz", r"cannot be read as an \.npz of arrays"),
        ("text.npz", r"cannot be read as an \.npz of arrays"),
        ("mixed", "images differ: .*000.png is 8x8, .*z.png is 9x9"),
        ("corrupt", r"003\.png: is not a readable image"),
        ("empty", r"holds neither a model_index\.json nor images"),
        ("pngs@4", "images that are there already have no steps"),
        ("run", "is a run: give .*/teacher@ddim:50, .*/student@1"),
        ("students/student@999", r"999: this student makes 1 to \d+ steps"),
        ("students/student@ddim:2", "ddim cannot take the place of its CMStochasticIterativeScheduler"),
        ("teacher@ddim:2000", "2000: are more steps than its schedule has"),
        ("teacher@magic:3", r"'magic:3': what follows @ must be STEPS or SOLVER:STEPS"),
        ("teacher@0", "'0': what follows @"),
        ("nowhere", "no such folder or file"),
        ("nowhere.npz", "no such folder or file"),
    ],
)
def test_a_wrong_subject_is_one_line(tmp_path, tiny_run, pngs, form, says):
    with pytest.raises(UserError, match=says) as error:
        opened(wrong(tmp_path, tiny_run, pngs, form))
    assert "\n" not in str(error.value)


def test_weights_in_a_pickle_are_refused(ddim_folder):
    weights = ddim_folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="cannot be loaded and called as a diffusers pipeline"):
        opened(f"{ddim_folder}@3")
