"""Scalings: how a network's output becomes a denoiser. `SCALINGS` is the list of what is supported.

D(x; sigma) = c_skip*x + c_out*F(c_in*x, c_noise), x = x0 + sigma*eps (Karras 2022, eq. 7). Each scaling is a frozen
dataclass with a JSON form: `scaling_from_json(scaling_to_json(s))` is the same function.
"""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.teachers.family import check_scaling
from fewstep.teachers.schedule import timestep_of_sigma


class Factors(NamedTuple):
    """The four numbers of each image, [B] each; c_noise is what the network reads as its timestep."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Scaling(Protocol):
    """What a `Preconditioned` network is scaled by."""

    name: ClassVar[str]

    def __call__(self, sigma: Tensor) -> Factors:
        """The factors at noise levels sigma [B], in its dtype and on its device."""
        ...


@dataclass(frozen=True)
class Discrete:
    """A network under a discrete variance-preserving schedule: it sees x/sqrt(1 + sigma^2) and the timestep t(sigma).

    table: the ascending sigmas of the schedule, finite, float64 [T]. Below its smallest sigma t = 0 is used, above its
    largest T - 1.
    """

    table: Tensor = field(compare=False)
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def timestep(self, sigma: Tensor) -> Tensor:
        """t(sigma) [B], linear in ln sigma between the table's entries."""
        if sigma.device not in self._copies:  # once: to move it each time is to wait for the device
            self._copies[sigma.device] = self.table.to(sigma.device)
        return timestep_of_sigma(sigma, self._copies[sigma.device])


@dataclass(frozen=True)
class Epsilon(Discrete):
    """The network predicts the noise (Ho 2020): D = x - sigma*F."""

    name: ClassVar[str] = "epsilon"

    def __call__(self, sigma: Tensor) -> Factors:
        """See `Scaling`."""
        return Factors(torch.ones_like(sigma), -sigma, 1 / (1 + sigma**2).sqrt(), self.timestep(sigma))


@dataclass(frozen=True)
class VPrediction(Discrete):
    """The network predicts v = (eps - sigma*x0)/sqrt(1 + sigma^2) (Salimans & Ho 2022, appendix D)."""

    name: ClassVar[str] = "v_prediction"

    def __call__(self, sigma: Tensor) -> Factors:
        """See `Scaling`."""
        c_in = 1 / (1 + sigma**2).sqrt()
        return Factors(c_in**2, -sigma * c_in, c_in, self.timestep(sigma))


@dataclass(frozen=True)
class Sample(Discrete):
    """The network predicts x0 itself."""

    name: ClassVar[str] = "sample"

    def __call__(self, sigma: Tensor) -> Factors:
        """See `Scaling`."""
        return Factors(torch.zeros_like(sigma), torch.ones_like(sigma), 1 / (1 + sigma**2).sqrt(), self.timestep(sigma))


@dataclass(frozen=True)
class EDM:
    """Karras 2022, table 1, last column; the network reads ln(sigma)/4."""

    name: ClassVar[str] = "edm"
    sigma_data: float = 0.5

    def __call__(self, sigma: Tensor) -> Factors:
        """See `Scaling`."""
        c_in = 1 / (sigma**2 + self.sigma_data**2).sqrt()
        return Factors((self.sigma_data * c_in) ** 2, sigma * self.sigma_data * c_in, c_in, sigma.log() / 4)


@dataclass(frozen=True)
class VE:
    """A score network of the variance-exploding SDE (Song 2021): D = x + sigma^2*F(x, sigma).

    unit: of the images that it was trained on, as a share of ours; 0.5 where theirs are in [0, 1]. There y = unit*x +
    a constant, and the network reads the noise of y and returns the score in terms of y: D = x + unit*sigma^2*F.
    """

    name: ClassVar[str] = "ve"
    unit: float = 1.0

    def __call__(self, sigma: Tensor) -> Factors:
        """See `Scaling`."""
        one = torch.ones_like(sigma)
        return Factors(one, self.unit * sigma**2, one, self.unit * sigma)


@dataclass(frozen=True)
class FlowMatching:
    """The network predicts eps - x0 at (1 - t)*x0 + t*eps, t = sigma/(1 + sigma) (Lipman 2023).

    It reads num_train_timesteps*t.
    """

    name: ClassVar[str] = "flow_matching"
    num_train_timesteps: float = 1000.0

    def __call__(self, sigma: Tensor) -> Factors:
        """See `Scaling`."""
        c_in = 1 / (1 + sigma)
        return Factors(c_in, -sigma * c_in, c_in, self.num_train_timesteps * sigma * c_in)


@dataclass(frozen=True)
class Consistency:
    """f(x, sigma_min) = x (Song 2023, appendix C), with the embedding of stock diffusers' scheduler, 250 ln sigma."""

    name: ClassVar[str] = "consistency"
    sigma_min: float = 0.002
    sigma_data: float = 1.0

    def __call__(self, sigma: Tensor) -> Factors:
        """See `Scaling`."""
        sd, above = self.sigma_data, sigma - self.sigma_min
        c_in = 1 / (sigma**2 + sd**2).sqrt()
        return Factors(sd**2 / (above**2 + sd**2), above * sd * c_in, c_in, 250 * sigma.log())


def output_weight(scaling: Scaling, sigma: Tensor) -> Tensor:
    """What turns |D - x0|^2 into the squared error of the network's output F at noise levels sigma [B]: 1/c_out^2.

    Of VE, whose F is a score and as large as 1/sigma, it is that of sigma*F in the network's units (Song 2021, eq. 7).
    """
    _, c_out, _, c_noise = scaling(sigma)
    return ((c_noise if isinstance(scaling, VE) else 1.0) / c_out) ** 2


SCALINGS: dict[str, type] = {
    kind.name: kind for kind in (Epsilon, VPrediction, Sample, EDM, VE, FlowMatching, Consistency)
}


GROWING = ("epsilon", "ve")
"""Scalings that multiply an error of the network by sigma: where sigma is large, D is far off in a sound model too."""


def scaling_to_json(scaling: Scaling) -> dict[str, Any]:
    """{"name": ..., and the scaling's own numbers}."""
    values = {each.name: getattr(scaling, each.name) for each in fields(scaling) if each.init}  # type: ignore[arg-type]
    plain = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in values.items()}
    return {"name": scaling.name} | plain


def scaling_from_json(value: Any, where: object) -> Scaling:  # noqa: ANN401 - JSON
    """The inverse of `scaling_to_json`; UserError, naming the file `where`, for what is none."""
    check_scaling(where, value)
    numbers = {key: number for key, number in value.items() if key != "name"}
    if "table" in numbers:
        numbers["table"] = torch.tensor(numbers["table"], dtype=torch.float64)
    return SCALINGS[value["name"]](**numbers)
