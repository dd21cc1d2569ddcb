"""The graph that is exported: it computes the sampler, holds everything, and can be traced for any batch."""

import pytest
import torch
from small_conditional import conditional_student, saved, stock_images

from fewstep.eval.images import to_uint8
from fewstep.eval.noise import KeyedNoise
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.ddim import ddim_student
from fewstep.students.graph import MOST_IMAGES, Generator
from fewstep.teachers.interfaces import Space
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import SCALINGS
from fewstep.teachers.schedule import vp_table


def drawn(student, steps, num=3):
    torch.manual_seed(1)
    noises = [torch.randn(num, *student.space.shape) for _ in Generator(student, steps).inputs]
    left = iter(noises)
    return noises, student.plan(steps).sample(student, lambda: next(left))


@pytest.fixture(params=["v_prediction", "sample"])
def of_steps(request, tiny_unet):
    """A student of DDIM steps."""
    scheduler = build_scheduler(1000, "squaredcos_cap_v2", request.param)
    table = vp_table(scheduler.alphas_cumprod)
    space = Space(shape=(1, 8, 8), sigma_min=float(table[0]), sigma_max=float(table[-1]), table=table)
    teacher = Preconditioned(tiny_unet(seed=2), SCALINGS[request.param](table), space)
    return ddim_student(teacher, scheduler).eval().requires_grad_(False)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_makes_the_images_of_the_sampler(student, steps):
    noises, images = drawn(student, steps)
    graph = Generator(student, steps)
    assert graph.inputs == ["noise", "noise_2", "noise_3", "noise_4"][:steps]
    torch.testing.assert_close(graph(*noises), images, atol=2e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_ddim_steps_draw_noise_once(of_steps, steps):
    noises, images = drawn(of_steps, steps)
    assert len(noises) == 1
    torch.testing.assert_close(Generator(of_steps, steps)(*noises), images, atol=2e-5, rtol=0)


def test_pixels_are_those_of_to_uint8(student):
    noises, images = drawn(student, 1, num=50)
    pixels = Generator(student, 1, pixels=True)(*noises)
    assert pixels.dtype == torch.uint8
    assert (pixels == to_uint8(images).permute(0, 2, 3, 1)).double().mean() > 0.9999


def test_the_student_stays_as_it_was_and_what_makes_the_time_is_left_behind(student):
    names = [name for name, _ in student.named_parameters()]
    before = student(torch.ones(2, 1, 8, 8), torch.full((2,), 3.0))
    graph = Generator(student, 2)
    assert [name for name, _ in student.named_parameters()] == names
    torch.testing.assert_close(student(torch.ones(2, 1, 8, 8), torch.full((2,), 3.0)), before)
    assert not [name for name, _ in graph.named_parameters() if "time" in name]


@pytest.mark.parametrize("steps", [1, 2])
def test_with_labels_it_makes_the_images_of_the_stock_pipeline(tmp_path, steps):
    graph, labels = Generator(saved(tmp_path), steps), [0, 2, 1, 1, 0]
    assert graph.inputs == [*["noise", "noise_2"][:steps], "labels"]
    noise = KeyedNoise((1, 8, 8), 3, 0, 5)
    noises = [noise.draw() for _ in range(steps)]
    images = graph(*noises, labels=torch.tensor(labels))
    torch.testing.assert_close(images, stock_images(tmp_path, steps, 3, labels), atol=1e-5, rtol=0)
    others = graph(*noises, labels=torch.tensor([0, 2, 1, 2, 0]))
    assert (images != others).flatten(1).any(1).tolist() == [False, False, False, True, False]
    with pytest.raises(ValueError, match="class_labels should be provided"):
        graph(*noises)


def test_blocks_that_read_time_and_class_stay_and_what_makes_the_time_alone_is_left_behind():
    names = [name for name, _ in Generator(conditional_student(), 2).named_parameters()]
    assert any("time_emb_proj" in name for name in names)
    assert not any("time_embedding" in name for name in names)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_program_runs_at_every_batch(tiny_unet, steps):
    """Blocks of diffusers take another way from 64 images on, which would bound a program's batch to one side."""
    student = ConsistencyModel(tiny_unet(seed=5)).eval().requires_grad_(False)
    graph = Generator(student, steps)
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    first, *later = [{0: batch}] * steps
    example = tuple(torch.zeros(2, 1, 8, 8) for _ in range(steps))  # one tensor twice is one input
    program = torch.export.export(graph, example, dynamic_shapes=(first, tuple(later)) if later else (first,)).module()
    for num in (1, 63, 64, 100):
        noises = [torch.randn(num, 1, 8, 8) for _ in range(steps)]
        torch.testing.assert_close(program(*noises), graph(*noises), atol=1e-5, rtol=0)
