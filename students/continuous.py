"""The continuous-time consistency objective (sCM: Lu & Song 2024), in the student's own sigma space.

A consistency function is constant along a trajectory of the ODE: df/ds = 0. Training moves the network's output F
by g = -sqrt(s^2 + sigma_data^2)*df/ds, which is the paper's tangent at t = arctan(s/sigma_data); its F is minus
ours.
"""

import math

import torch
from torch import Tensor, nn

from fewstep.students.consistency import ConsistencyModel
from fewstep.students.forward import jvp
from fewstep.students.pairs import log_normal_sigmas
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
from fewstep.teachers.scaling import Consistency
from fewstep.teachers.solvers import ode_slope


def derivatives(
    model: Preconditioned, x: Tensor, sigma: Tensor, slope: Tensor, condition: Condition = NONE
) -> tuple[Tensor, Tensor]:
    """df/ds [B,C,H,W] along dx/ds = `slope`, as two terms: a denoiser's, and what makes it a consistency function's.

    With f = c_skip*x + c_out*F the terms are c_skip'*x/2 + c_skip*dx/ds + c_out'*F, which is nothing where f is the
    denoiser of that slope, and c_skip'*x/2 + c_out*dF/ds. The weights have no part in it, and torch's generators stay
    as they are, so that an evaluation of the model right after it has the same dropout. In full precision.
    """
    ones = torch.ones_like(sigma)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        found = jvp(lambda x, s: model.parts(x, s, condition), (x, sigma), (slope, ones))
    (c_skip, c_out, output), (d_skip, d_out, d_output) = found
    half = per_image(d_skip / 2) * x
    return half + per_image(c_skip) * slope + per_image(d_out) * output, half + per_image(c_out) * d_output


FASTEST = 3.0
"""Radians for a factor e of sigma."""


def slow_time_embedding(model: ConsistencyModel) -> None:
    """Take from a student's time embedding, which reads 250 ln s, what turns faster than FASTEST, and hold it out.

    The first layer's weights of those sines and cosines become 0 and get no gradient: a small weight there is a large
    derivative (the paper, section 4.1, for the same reason gives its network a slow embedding). What a consistency
    function is of ln s needs none of them.
    """
    unet = model.network
    weight = unet.time_embedding.linear_1.weight
    low, high = (250 * math.log(bound) for bound in (model.sigma_min, model.sigma_max))
    points = torch.linspace(low, high, 10_000, device=weight.device)
    _, speed = jvp(unet.time_proj, (points,), (torch.ones_like(points),))
    slow = (250 * speed.abs().amax(dim=0) <= FASTEST).to(weight.dtype)
    with torch.no_grad():
        weight.mul_(slow)
    weight.register_hook(lambda gradient: gradient * slow.to(gradient.device))


class LossWeight(nn.Module):
    """w(s) [B], learned: a cosine series in the place of ln s between the two ends, 0 at first.

    The minimum of exp(w)*L - w is where exp(w)*L = 1, so that every noise level has the same say (Karras 2024, eq. 21).
    """

    def __init__(self, sigma_min: float, sigma_max: float, terms: int = 16) -> None:
        super().__init__()
        self.low, self.high = math.log(sigma_min), math.log(sigma_max)
        self.factors = nn.Parameter(torch.zeros(terms))

    def forward(self, sigma: Tensor) -> Tensor:
        place = math.pi * (sigma.log() - self.low) / (self.high - self.low)
        order = torch.arange(len(self.factors), device=sigma.device)
        return torch.cos(place[:, None] * order) @ self.factors


class ContinuousObjective(Objective):
    """Train `network` to be constant along the teacher's ODE, or where `teacher` is None along the data's.

    loss = exp(w(s))*|F - sg(F) - g/(rms(g) + 0.1)|^2/dim - w(s), the tangent g with a second term that grows from
    nothing over the share `warmup` of training; ln s ~ N(mean, std^2), truncated to the student's range.
    """

    def __init__(
        self, network: Preconditioned, teacher: Denoiser | None, *, mean: float, std: float, warmup: float
    ) -> None:
        super().__init__()
        self.network, self._teacher = network, [teacher]  # in a list: no part of this module
        self.mean, self.std, self.warmup = mean, std, warmup
        self.weight = LossWeight(network.space.sigma_min, network.space.sigma_max)
        self.cost = Evaluations(student=1, jvp=1, teacher=0 if teacher is None else 1)

    def parameter_groups(self) -> list[dict[str, object]]:
        """The network; and the weight, which is to follow the loss closely."""
        return [{"params": list(self.network.parameters())}, {"params": [self.weight.factors], "lr_scale": 10.0}]

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B] of images [B,C,H,W] in [-1, 1]."""
        x_0, model = batch.images, self.network
        assert isinstance(model, Preconditioned)
        space, scaling = model.space, model.scaling
        assert isinstance(scaling, Consistency)
        drawn = log_normal_sigmas(len(x_0), space.sigma_min, space.sigma_max, self.mean, self.std, generator)
        sigma = moved(drawn, x_0.device)
        eps = randn(tuple(x_0.shape), generator, x_0.device)
        x = x_0 + per_image(sigma) * eps
        with torch.no_grad():
            teacher = self._teacher[0]
            slope = eps if teacher is None else ode_slope(teacher, x, sigma, batch.condition)
        denoising, consistency = derivatives(model, x, sigma, slope, batch.condition)
        ramp = min(1.0, progress.fraction / self.warmup) if self.warmup else 1.0
        tangent = -per_image((sigma**2 + scaling.sigma_data**2).sqrt()) * (denoising + ramp * consistency)
        rms = tangent.square().mean(dim=(1, 2, 3)).sqrt()
        estimate = model(x, sigma, batch.condition)
        moves = (estimate - estimate.detach()) / per_image(scaling(sigma).c_out)  # F - sg(F)
        error = (moves - tangent / per_image(rms + 0.1)).square().mean(dim=(1, 2, 3))
        weight = self.weight(sigma)
        return LossTerms(
            loss=weight.exp() * error - weight, sigma=sigma, estimate=estimate, log={"tangent": rms.detach().mean()}
        )
