"""The adversarial finish: whose gradient goes where, R1 by differences, draws, and a discriminator of any side."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep.students.consistency import ConsistencyModel
from fewstep.students.discriminator import Discriminator, Encoder
from fewstep.students.methods.adversarial import Adversarial
from fewstep.students.objective import squared
from fewstep.students.regression import TrajectoryRegression
from fewstep.students.trajectories import Trajectories
from fewstep.teachers.interfaces import Batch, LossTerms, Progress, per_image, stratified
from small_training import Training, stored

IMAGES = torch.randn((8, 1, 8, 8), generator=torch.Generator().manual_seed(5)).clamp(-1, 1)
SETTINGS = Adversarial(width=4, share=0.4, weight=0.7, penalty=0.3, sigma_min=0.1, sigma_max=2.5)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def inner(tiny_unet: Any) -> TrajectoryRegression:
    model = ConsistencyModel(tiny_unet(seed=2))
    points = torch.randn((16, 3, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    made = Trajectories([model.sigma_max, 1.0, model.sigma_min], [points])
    return TrajectoryRegression(model, made, distance=squared, at_sigma_max=0.25)


def terms_at(objective: Any, step: int) -> LossTerms:
    return objective(Batch(images=IMAGES), Progress(step=step, total_steps=10, images=0), generator())


def gradients(loss: Tensor, module: nn.Module) -> list[Any]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True))


def test_before_the_finish_it_is_the_objective_to_the_bit(inner: TrajectoryRegression):
    finish = SETTINGS.build(inner)
    terms, own = terms_at(finish, 5), terms_at(inner, 5)
    assert torch.equal(terms.loss, own.loss)
    assert terms.log == own.log == {}
    assert gradients(terms.loss.sum(), finish.discriminator) == [None] * len(list(finish.discriminator.parameters()))
    assert set(terms_at(finish, 6).log) == {"discriminator_loss", "fooled_loss"}


@pytest.mark.parametrize(("step", "weight"), [(24, 0.0), (26, 0.35), (28, 0.7), (39, 0.7)])
def test_each_network_gets_the_gradient_of_its_own_losses(inner: TrajectoryRegression, step: int, weight: float):
    """By hand in float64, drawing as `forward` does: the method's, then levels and noise of real and of made.

    The weight grows to 0.7 in the first quarter of the finish, steps 24 to 28 of 40.
    """
    progress = Progress(step=step, total_steps=40, images=0)
    finish = SETTINGS.build(inner).double()
    for network in (inner.network, finish.discriminator):
        network.register_forward_pre_hook(
            lambda _, given: tuple(each.double() if isinstance(each, Tensor) else each for each in given)
        )
    draws = generator()
    own = inner(Batch(images=IMAGES.double()), progress, draws)
    noised = []
    for images in (IMAGES.double(), own.estimate):
        low, high = math.log(SETTINGS.sigma_min), math.log(SETTINGS.sigma_max)
        sigma = (low + (high - low) * stratified(8, draws)).exp().float()
        noised.append((images + per_image(sigma) * torch.randn((8, 1, 8, 8), generator=draws), sigma))
    (real, sigma_real), (made, sigma_made) = noised
    assert made.dtype == torch.float64
    real = real.requires_grad_()
    d, d_made = finish.discriminator(real, sigma_real), finish.discriminator(made.detach(), sigma_made)
    (slope,) = torch.autograd.grad(d.sum(), real, create_graph=True)
    told = softplus(-d) + softplus(d_made) + 0.3 * slope.square().sum((1, 2, 3))
    fooled = softplus(-finish.discriminator(made, sigma_made))
    student = gradients((own.loss + weight * fooled).sum(), inner.network)
    judge = gradients(told.sum(), finish.discriminator)
    terms = finish(Batch(images=IMAGES.double()), progress, generator())
    torch.testing.assert_close(terms.loss, own.loss + weight * fooled + told, rtol=1e-6, atol=0)
    assert terms.shown is not None
    torch.testing.assert_close(terms.shown, own.loss)
    for module, expected in ((inner.network, student), (finish.discriminator, judge)):
        for found, each in zip(gradients(terms.loss.sum(), module), expected, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-6, atol=1e-9 + 1e-6 * float(each.abs().max()))
    only_method = gradients(own.loss.sum(), inner.network)
    changed = any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(student, only_method, strict=True))
    assert changed == (weight > 0)


def test_r1_is_the_squared_gradient_at_real_images(inner: TrajectoryRegression):
    """Against central differences in float64, at a pixel at a time."""
    finish = SETTINGS.build(inner).double()
    real, sigma = IMAGES[:2].double(), torch.tensor([0.2, 1.5], dtype=torch.float64)
    _, penalty = finish.discriminator_loss([real], sigma, [real], sigma)
    steps = 1e-5 * torch.eye(64, dtype=torch.float64).reshape(64, 1, 1, 8, 8)
    with torch.no_grad():
        values = [
            torch.stack([finish.discriminator(real + sign * step, sigma) for step in steps]) for sign in (1.0, -1.0)
        ]
    slopes = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close(penalty, slopes.square().sum(0), rtol=1e-6, atol=0)


def test_every_draw_comes_from_the_generator_and_levels_are_within_their_ends(inner: TrajectoryRegression):
    finish = SETTINGS.build(inner)
    before = torch.random.get_rng_state()
    one, two = (finish._noised(IMAGES, each) for each in (generator(), generator()))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    sigma = finish._noised(torch.zeros(4000, 1, 8, 8), generator())[1]
    assert 0.1 <= float(sigma.min()) < 0.101
    assert 2.49 < float(sigma.max()) <= 2.5
    assert float(sigma.log().mean()) == pytest.approx((math.log(0.1) + math.log(2.5)) / 2, abs=1e-3)


def test_the_discriminator_has_a_group_of_its_own_and_no_part_in_the_average(inner: TrajectoryRegression):
    before = torch.random.get_rng_state()
    finish = SETTINGS.model_copy(update={"lr_scale": 3.0}).build(inner)
    assert torch.equal(torch.random.get_rng_state(), before)
    student, own = finish.parameter_groups()
    assert {id(each) for each in student["params"]} == {id(each) for each in inner.network.parameters()}
    assert {id(each) for each in own["params"]} == {id(each) for each in finish.discriminator.parameters()}
    assert own["lr_scale"] == 3.0
    assert finish.averaged() is finish.network is inner.network


@pytest.mark.parametrize("interrupted_at", [2, 9])
def test_resumed_to_the_bit_before_and_in_the_finish(inner: Any, tmp_path: Path, tiny_unet: Any, interrupted_at: int):
    def run(training: Training, stops_at: int | None = None) -> None:
        inner.network = ConsistencyModel(tiny_unet(seed=2))
        finish = SETTINGS.build(inner)
        inner.update = lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.step + 1 == stops_at else None
        pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=generator(), dtype=torch.uint8)
        training.job = replace(training.job, data=stored(pixels))
        training.run(finish)

    whole, cut = Training(tmp_path / "whole"), Training(tmp_path / "cut")
    run(whole)
    with pytest.raises(SystemExit):
        run(cut, interrupted_at)
    run(cut)
    assert cut.hashes(12) == whole.hashes(12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 8, 28, 30, 32])
def test_a_discriminator_of_any_side_tells_each_image_by_itself(side: int, channels: int):
    torch.manual_seed(0)
    network = Discriminator(channels, side, 4)
    images, sigma = torch.randn(3, channels, side, side), torch.tensor([0.1, 1.0, 2.5])
    logits = network(images, sigma)
    assert logits.shape == (3,)
    torch.testing.assert_close(network(images[1:2], sigma[1:2]), logits[1:2])
    assert not torch.allclose(network(images, sigma.flip(0)), logits)


def test_derivatives_of_the_discriminator_have_derivatives():
    torch.manual_seed(0)
    network = Discriminator(1, 5, 2).double()
    sigma = torch.tensor([0.5], dtype=torch.float64)
    x = torch.randn((1, 1, 5, 5), dtype=torch.float64, requires_grad=True)
    weight = network.first.weight.detach().requires_grad_()

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(network, {"first.weight": weight}, (x, sigma))

    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight))


FEATURES = SETTINGS.model_copy(update={"features": True, "from_noise": 0.5})


def test_the_encoder_sees_what_the_unet_computes_on_its_way_down(inner: TrajectoryRegression):
    student: Any = inner.network
    encoder = Encoder(student)
    x, sigma = 3 * IMAGES[:2], torch.tensor([0.5, 2.0])
    unet, passed = student.network.eval(), list[Tensor]()
    for block in unet.down_blocks:
        block.resnets[-1].register_forward_hook(lambda module, given, made: passed.append(made))
    unet.mid_block.register_forward_hook(lambda module, given, made: passed.append(made))
    student(x, sigma)
    seen = encoder(x, sigma)
    assert [each.shape[1] for each in seen] == list(encoder.channels)
    for one, two in zip(seen, passed, strict=True):
        torch.testing.assert_close(one, two)


def test_with_features_new_noise_is_judged_and_the_encoder_never_trained(inner: TrajectoryRegression):
    finish = FEATURES.build(inner).train()
    assert finish.encoder is not None
    assert not finish.encoder.student.training
    student, own = finish.parameter_groups()
    encoder = {id(each) for each in finish.encoder.parameters()}
    assert not encoder & {id(each) for group in (student, own) for each in group["params"]}
    called = list[tuple[Tensor, Tensor, object]]()
    inner.network.register_forward_hook(lambda module, given, made: called.append(given))
    terms, alone = terms_at(finish, 9), terms_at(inner, 9)
    _, (x, sigma, _), _ = called
    assert (len(x), sigma.tolist()) == (4, [80.0] * 4)
    assert 64 < float(x.std()) < 96
    own_part = gradients(alone.loss.sum(), inner.network)
    whole = gradients(terms.loss.sum(), inner.network)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(whole, own_part, strict=True))
    assert all(each is not None and bool(each.any()) for each in gradients(terms.loss.sum(), finish.discriminator)[::2])
    terms.loss.sum().backward()
    assert all(each.grad is None for each in finish.encoder.parameters())


def test_heads_learn_what_features_tell_apart(inner: TrajectoryRegression):
    """From white images against black ones, at the noise of the settings."""
    finish = FEATURES.build(inner)
    optimizer = torch.optim.Adam(finish.discriminator.parameters(), 1e-2)
    draws, course = generator(), list[float]()
    for _ in range(40):
        pair = [finish._noised(torch.full((8, 1, 8, 8), value), draws) for value in (0.5, -0.5)]
        (real, sigma_real), (made, sigma_made) = ((finish._seen(*each), each[1]) for each in pair)
        told, penalty = finish.discriminator_loss(real, sigma_real, made, sigma_made)
        assert bool((penalty > 0).all())
        course.append(float(told.detach().mean()))
        optimizer.zero_grad()
        told.mean().backward()
        optimizer.step()
    assert course[-1] < 0.2 < 1.2 < course[0] < 1.6


def test_from_noise_counts_in_the_cost(inner: TrajectoryRegression):
    plain, half = (SETTINGS.model_copy(update={"from_noise": each}).build(inner).cost for each in (0.0, 0.5))
    assert half.student == pytest.approx(plain.student + 0.4 * 0.5)
    assert half.smaller == pytest.approx(plain.smaller / 2)
