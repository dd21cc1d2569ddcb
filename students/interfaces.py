"""What every student is to those that sample, save and describe it."""

from abc import abstractmethod
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline

from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.solvers import Planned


class StockCall(NamedTuple):
    """Arguments of a stock pipeline's call, and what it does with them."""

    arguments: dict[str, Any]
    planned: Planned


class Student(Preconditioned):
    """A model that makes images in few steps, and that a stock diffusers pipeline samples to the same images."""

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """In how many steps it can make images; 1 is the fewest."""

    @abstractmethod
    def plan(self, steps: int) -> Planned:
        """How it makes images in `steps` steps, 1 up to `most_steps`."""

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """The stock pipeline that is saved: a copy of the network, float32 on the CPU, and its scheduler."""

    @abstractmethod
    def stock_calls(self) -> list[StockCall]:
        """The calls of the stock pipeline that are checked when it is saved."""
