"""A .pt2 file as a subject: its images, and the interfaces that are refused."""

import pytest
import torch
from exported_programs import Of, exported
from small_conditional import CLASSES, conditional_student
from torch import nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from fewstep.errors import UserError
from fewstep.eval.images import labels_for
from fewstep.eval.noise import KeyedNoise
from fewstep.pipeline.export.formats import write_program
from fewstep.pipeline.sampling.pt2 import ProgramSampler
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.students.graph import Generator

CPU = torch.device("cpu")


class Two(nn.Module):
    def forward(self, noise, labels):
        return noise + labels


class Latent(nn.Module):
    def forward(self, latent):
        return latent * 2


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_images_are_the_module_s_at_every_batch(program, generator, batch):
    sampler, identity = open_subject(str(program), CPU)
    assert isinstance(sampler, ProgramSampler)
    assert (sampler.nfe, sampler.shape, sampler.kind, len(identity())) == (1, (1, 8, 8), "export", 64)
    assert sampler.network_parameters == 40 + 37 + 8 + 1
    x = KeyedNoise((1, 8, 8), 3, 0, batch).draw()
    with torch.no_grad():
        torch.testing.assert_close(sampler.sample(KeyedNoise((1, 8, 8), 3, 0, batch)), generator(x))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_conditional_program_takes_labels_at_every_batch(tmp_path, steps):
    graph = Generator(conditional_student(), steps)
    write_program(graph, tmp_path / "x.pt2", {"steps": [steps], "num_classes": CLASSES})
    sampler = ProgramSampler("x.pt2", "x", tmp_path / "x.pt2", CPU, trust=True)
    assert (sampler.num_classes, sampler.nfe) == (CLASSES, steps)
    for batch in (1, 2, 5, 64):
        noise, labels = KeyedNoise((1, 8, 8), 3, 0, batch), labels_for(sampler, 1, 1 + batch)
        images = sampler.sample(KeyedNoise((1, 8, 8), 3, 0, batch), labels)
        expected = graph(*(noise.draw() for _ in range(steps)), labels=labels)
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"x\.pt2: labels: \[3\]: this student is class-conditional: give 0 to 2"):
        sampler.sample(KeyedNoise((1, 8, 8), 3, 0, 1), torch.tensor([3]))


def test_labels_of_an_unknown_number_of_classes_are_refused(tmp_path):
    write_program(Generator(conditional_student(), 1), tmp_path / "x.pt2", {})
    with pytest.raises(UserError, match=r"x\.pt2: takes 'labels' and does not say of how many classes"):
        ProgramSampler("x.pt2", "x", tmp_path / "x.pt2", CPU, trust=True)


def test_operations_are_counted(program, generator):
    sampler = ProgramSampler("x", "x", program, CPU)
    with FlopCounterMode(display=False) as counter:
        sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 1))
    assert counter.get_total_flops() == 2 * (2 * 64 * 9 * 4)  # two convolutions, 1 -> 4 and 4 -> 1, 3x3 on 8x8


def test_a_region_without_gradients_is_run(tmp_path):
    path = exported(
        tmp_path / "x.pt2", Of(torch.no_grad()(lambda noise: torch.tanh(noise * 2))), torch.randn(2, 1, 4, 4)
    )
    noise = KeyedNoise((1, 4, 4), 0, 0, 3).draw()
    sampled = ProgramSampler("x", "x", path, CPU, trust=True).sample(KeyedNoise((1, 4, 4), 0, 0, 3))
    torch.testing.assert_close(sampled, torch.tanh(noise * 2))


def test_a_constant_tensor_and_the_text_of_a_product_are_read(tmp_path):
    def function(noise):
        return torch.einsum("bchw,wv->bchv", noise, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    path = exported(tmp_path / "x.pt2", Of(function), torch.randn(2, 1, 2, 2))
    noise = KeyedNoise((1, 2, 2), 0, 0, 3).draw()
    sampled = ProgramSampler("x", "x", path, CPU, trust=True).sample(KeyedNoise((1, 2, 2), 0, 0, 3))
    torch.testing.assert_close(sampled, noise.flip(-1))


def test_weights_and_constants_are_moved_to_the_device(program):
    sampled = ProgramSampler("x", "x", program, torch.device("meta")).sample(KeyedNoise((1, 8, 8), 0, 0, 5))
    assert sampled.device.type == "meta"


@pytest.mark.gpu
def test_a_program_exported_on_the_processor_runs_on_the_device(program, generator):
    sampled = ProgramSampler("x", "x", program, torch.device("cuda")).sample(KeyedNoise((1, 8, 8), 0, 0, 5))
    assert sampled.device.type == "cuda"
    with torch.no_grad():
        expected = generator(KeyedNoise((1, 8, 8), 0, 0, 5).draw())
    torch.testing.assert_close(sampled.cpu(), expected, atol=2e-3, rtol=0)  # TF32 convolutions


IMAGES = torch.randn(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("module", "inputs", "free", "says"),
    [
        (Latent(), (IMAGES,), True, "has the inputs latent float32 .*; needed is one float32 input 'noise'"),
        (Two(), (IMAGES, IMAGES), True, "has the inputs noise float32 .*, labels float32"),
        (Of(torch.tanh), (IMAGES.double(),), True, r"has the inputs noise float64 \[free, 1, 8, 8\]"),
        (Of(torch.tanh), (torch.randn(2, 64),), True, r"has the inputs noise float32 \[free, 64\]"),
        (Of(torch.tanh), (IMAGES,), False, r"has the inputs noise float32 \[2, 1, 8, 8\] .* with a free B"),
        (Of(lambda noise: (noise, noise + 1)), (IMAGES,), True, "2 outputs"),
        (Of(lambda noise: noise.flatten(1)), (IMAGES,), True, r"gives float32 \(1, 64\) for \(1, 1, 8, 8\)"),
        (Of(lambda noise: noise.double()), (IMAGES,), True, r"gives float64 \(1, 1, 8, 8\)"),
    ],
)
def test_another_interface_is_one_line(tmp_path, module, inputs, free, says):
    path = exported(tmp_path / "x.pt2", module, *inputs, free=free)
    with pytest.raises(UserError, match=says) as error:
        ProgramSampler("x.pt2", "x", path, CPU, trust=True)
    assert "\n" not in str(error.value)


def test_a_program_that_fails_on_a_batch_is_one_line(tmp_path):
    program = torch.export.export(Of(torch.tanh), (IMAGES,), dynamic_shapes=[{0: Dim("batch", min=1, max=63)}])
    torch.export.save(program, tmp_path / "x.pt2")
    sampler = ProgramSampler("x.pt2", "x", tmp_path / "x.pt2", CPU, trust=True)
    with pytest.raises(
        UserError, match=r"x\.pt2: fails on a batch of 64 \(.*<= 63.*eval.throughput_batch_sizes"
    ) as error:
        sampler.sample(KeyedNoise((1, 8, 8), 0, 0, 64))
    assert "\n" not in str(error.value)


def test_steps_are_refused(program):
    with pytest.raises(
        UserError, match="an exported student makes the steps that it was exported for: leave out what follows @"
    ):
        open_subject(f"{program}@2", CPU)
