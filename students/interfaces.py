"""What every student is to those that sample, save and describe it."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline

from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.solvers import Planned


class StockCall(NamedTuple):
    """Arguments of a stock pipeline's call, and what it does with them."""

    arguments: dict[str, Any]
    planned: Planned


class FixedStep(NamedTuple):
    """One step of a sampler in numbers: x <- x + noise*z, then x <- skip*x + out*F(scale*x, time).

    x is in the terms of x0 + sigma*eps and starts at 0; z is standard normal; `clamped`: to [-1, 1] at the end.
    """

    noise: float
    scale: float
    time: float
    skip: float
    out: float
    clamped: bool


class Student(Preconditioned, ABC):
    """A model that makes images in few steps, and that a stock diffusers pipeline samples to the same images."""

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """In how many steps it can make images; 1 is the fewest."""

    @abstractmethod
    def plan(self, steps: int) -> Planned:
        """How it makes images in `steps` steps, 1 up to `most_steps`."""

    @abstractmethod
    def fixed_steps(self, steps: int) -> list[FixedStep]:
        """`plan` as numbers, for a graph that holds nothing else."""

    @abstractmethod
    def stock_call(self, steps: int) -> dict[str, Any]:
        """The arguments with which the stock pipeline makes the images of `plan(steps)`."""

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """The stock pipeline that is saved: a copy of the network, float32 on the CPU, and its scheduler."""

    @abstractmethod
    def stock_calls(self) -> list[StockCall]:
        """The calls of the stock pipeline that are checked when it is saved."""
