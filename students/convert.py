"""From a teacher to a student: a change of scaling.

Where the network's output means the same under both scalings (`FOLDS`), only the time embedding is trained, as it must
now read 250 ln sigma. With sigma_data = 1 the consistency scalings are those of v prediction with F = -v, and with
the teacher's own sigma_data those of EDM, both up to the sigma_min shift. Other teachers give the starting weights, and
the student is regressed onto their denoiser (`Regression`).
"""

import copy
import math
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.pairs import log_normal_sigmas
from fewstep.teachers.guided import Guided
from fewstep.teachers.interfaces import (
    NONE,
    Batch,
    Condition,
    Denoiser,
    Evaluations,
    LossTerms,
    Objective,
    Progress,
    moved,
    per_image,
    randn,
)
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.refusal import refusal
from fewstep.teachers.scaling import EDM, VE, Epsilon, FlowMatching, Sample, VPrediction

FOLDS: dict[type, tuple[float, bool]] = {
    VPrediction: (-1.0, True),
    EDM: (1.0, True),
    Epsilon: (-1.0, False),  # at small sigma F is -eps
    Sample: (1.0, False),  # at large sigma F is x0
    FlowMatching: (-1.0, False),  # F = x0 - eps, but for the scaling of its input
    VE: (1.0, False),  # times sigma, which a Fourier network divides by, F is -eps
}
"""By the teacher's scaling: the factor of its last convolution, and whether the student is then the teacher."""


def check_convertible(teacher: Preconditioned | Guided, sigma_max: float) -> None:
    """Raise UserError where a teacher cannot become a student that stock diffusers loads."""
    assert isinstance(teacher.network, UNet2DModel)
    config = {**teacher.network.config, "_class_name": "UNet2DModel"}
    if (why := refusal(config, teacher.scaling.name)) is not None:
        raise UserError("teacher.source", None, f"cannot be distilled: {why}")
    if sigma_max > teacher.space.sigma_max:
        largest = math.floor(teacher.space.sigma_max * 100) / 100
        remedy = f"is above the teacher's largest noise level; give at most {largest}"
        raise UserError("student.sigma_max", sigma_max, remedy)


def convert_teacher(
    teacher: Preconditioned | Guided,
    *,
    sigma_min: float,
    sigma_max: float,
    refit_steps: int,
    generator: torch.Generator,
) -> tuple[ConsistencyModel, bool]:
    """A student with the teacher's weights, ready to train, and whether it already computes what the teacher does.

    With guidance, which is two evaluations in one, it does not.
    """
    check_convertible(teacher, sigma_max)
    assert isinstance(teacher.network, UNet2DModel)
    factor, exact = FOLDS[type(teacher.scaling)]
    exact = exact and isinstance(teacher, Preconditioned)
    unet = student_network(teacher)
    _scale_output(unet, factor)
    sigma_data = teacher.scaling.sigma_data if isinstance(teacher.scaling, EDM) else 1.0
    model = ConsistencyModel(unet, sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)
    refit_time_embedding(model, teacher, refit_steps, generator)
    return model.requires_grad_(True).train(), exact


def student_network(teacher: Preconditioned | Guided) -> UNet2DModel:
    """A copy of the teacher's network as a student has it, and as stock pipelines take it.

    Left out are the output channels of a learned variance and the row of the classes that means none. In the place of
    a Fourier time embedding there is a positional one, new in its first layer, and nothing divides the output by time.
    """
    network = teacher.network
    assert isinstance(network, UNet2DModel)
    channels, classes = network.config["in_channels"], teacher.space.num_classes
    if network.config["time_embedding_type"] == "fourier":
        unet = _with_positional_embedding(network)
    else:
        unet = copy.deepcopy(network)
    for parameter in unet.conv_out.parameters():
        parameter.data = parameter.data[:channels].clone()
    unet.conv_out.out_channels = channels
    unet.register_to_config(out_channels=channels)
    if classes is not None:
        assert isinstance(unet.class_embedding, torch.nn.Embedding)
        unet.class_embedding = torch.nn.Embedding.from_pretrained(
            unet.class_embedding.weight[:classes].detach().clone()
        )
        unet.register_to_config(num_class_embeds=classes)
    return unet


def _with_positional_embedding(network: UNet2DModel) -> UNet2DModel:
    """A copy with another time embedding, whose second layer alone is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel.from_config({**network.config, "time_embedding_type": "positional"})
    assert isinstance(unet, UNet2DModel)
    kept = {key: value for key, value in network.state_dict().items() if key not in _OF_FOURIER}
    unet.load_state_dict({**unet.state_dict(), **kept})
    return unet.to(network.device)  # type: ignore[call-arg]


_OF_FOURIER = ("time_proj.weight", "time_proj.W", "time_embedding.linear_1.weight", "time_embedding.linear_1.bias")


@torch.no_grad()
def _scale_output(unet: UNet2DModel, factor: float) -> None:
    """Multiply a network's output: that of its last convolution, and of those whose sum skip blocks add to it."""
    skips = (getattr(block, "skip_conv", None) for block in unet.up_blocks)
    last = [unet.conv_out, *(layer for layer in skips if isinstance(layer, torch.nn.Module))]
    for parameter in (parameter for layer in last for parameter in layer.parameters()):
        parameter.mul_(factor)


def refit_time_embedding(
    model: ConsistencyModel,
    teacher: Preconditioned | Guided,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 256,
) -> None:
    """Fit the student's embedding network so that emb(250 ln sigma) equals the teacher's emb(c_noise(sigma)).

    A regression of the two embeddings, with ln sigma uniform over the student's range; the rest of the network
    is not evaluated. Adam, cosine decay from 1e-3.
    """
    unet, device = model.network, model.device
    embedding = unet.time_embedding.requires_grad_(True)
    low, high = torch.tensor([model.sigma_min, model.sigma_max]).log().tolist()
    optimizer = torch.optim.Adam(embedding.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
    for _ in range(steps):
        log_sigma = low + (high - low) * torch.rand(batch_size, generator=generator)
        target = _embed(teacher.network, teacher.scaling(log_sigma.exp()).c_noise.to(device))
        loss = (_embed(unet, 250 * log_sigma.to(device)) - target.detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _embed(unet: torch.nn.Module, timestep: Tensor) -> Tensor:
    assert isinstance(unet, UNet2DModel)
    return unet.time_embedding(unet.time_proj(timestep))


class Regression(Objective):
    """Fit the student to a teacher's denoiser in the student's own parametrisation.

    loss = (1/s^2 + 1/sigma_data^2)*|f(x, s) - target|^2, which is the error of F up to the sigma_min shift; ln s as in
    ECT. The target is D(x; s) between the two noise levels `trusted` (None: nowhere), the clean image elsewhere: their
    expectations agree for an exact teacher, and an epsilon teacher's error is multiplied by s.
    """

    cost = Evaluations(student=1, teacher=1)

    def __init__(self, network: ConsistencyModel, teacher: Denoiser, trusted: tuple[float, float] | None) -> None:
        super().__init__()
        self.network = network
        self.trusted, self._teacher = trusted, [teacher]  # in a list: no part of this module

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0, model = batch.images, self.network
        assert isinstance(model, ConsistencyModel)
        drawn = log_normal_sigmas(len(x_0), model.sigma_min, model.sigma_max, -1.1, 2.0, generator)
        sigma = moved(drawn, x_0.device)
        x = x_0 + per_image(sigma) * randn(tuple(x_0.shape), generator, x_0.device)
        low, high = self.trusted or (math.inf, -math.inf)
        with torch.no_grad():
            good = per_image((sigma >= low) & (sigma <= high))
            target = torch.where(good, self._teacher[0](x, sigma, batch.condition), x_0)
        error = (model(x, sigma, batch.condition) - target).square().mean(dim=(1, 2, 3))
        return LossTerms(loss=(1 / sigma**2 + 1 / model.scaling.sigma_data**2) * error, sigma=sigma)


@torch.inference_mode()
def trusted_range(
    teacher: Denoiser, images: Tensor, generator: torch.Generator, condition: Condition = NONE
) -> tuple[float, float] | None:
    """The noise levels around the middle of its range at which a teacher denoises better than no network would.

    That is, its mean squared error on images [B,C,H,W] is below s^2*v/(s^2 + v), that of shrinking x towards a mean,
    where v is the variance of a pixel. Checked at 25 levels, equal steps of ln sigma; None where it is so at none.
    """
    variance = float(images.var(dim=0).mean())
    ends = [math.log(bound) for bound in (teacher.space.sigma_min, teacher.space.sigma_max)]
    levels = torch.linspace(ends[0], ends[1], 25).exp().tolist()
    good = []
    for value in levels:
        x = images + value * torch.randn(images.shape, generator=generator).to(images.device)
        error = teacher(x, torch.full((len(x),), value, device=x.device), condition) - images
        good.append(float(error.square().mean()) < value**2 * variance / (value**2 + variance))
    middle = min(range(25), key=lambda index: (not good[index], abs(math.log(levels[index]))))
    if not good[middle]:
        return None
    first = last = middle
    while first > 0 and good[first - 1]:
        first -= 1
    while last < 24 and good[last + 1]:
        last += 1
    return levels[first], levels[last]


def judged_sigmas(model: Denoiser, teacher: Denoiser, num: int = 8) -> list[float]:
    """Noise levels that both have, `num` of them in equal steps of ln sigma, rounded to three digits inwards."""
    low = max(model.space.sigma_min, teacher.space.sigma_min)
    high = min(model.space.sigma_max, teacher.space.sigma_max)
    values = torch.linspace(math.log(low), math.log(high), num, dtype=torch.float64).exp().tolist()
    return [min(max(float(f"{value:.3g}"), low), high) for value in values]


@torch.inference_mode()
def conversion_error(
    model: Denoiser,
    teacher: Denoiser,
    images: Tensor,
    generator: torch.Generator,
    sigmas: Sequence[float],
    condition: Condition = NONE,
) -> dict[float, float]:
    """RMSE of the student's denoiser from the teacher's at each sigma, on images [B,C,H,W] in [-1, 1]."""
    errors = {}
    for value in sigmas:
        sigma = torch.full((len(images),), value, device=images.device)
        eps = torch.randn(images.shape, generator=generator).to(images.device)
        x = images + value * eps
        errors[value] = float((model(x, sigma, condition) - teacher(x, sigma, condition)).square().mean().sqrt())
    return errors
