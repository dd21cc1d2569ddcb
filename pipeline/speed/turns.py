"""Contenders that take turns with the steps of a training, so that a machine that grows slower does so for all."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from fewstep.eval.speed.timing import synchronise
from fewstep.teachers.interfaces import Objective, Progress

Step = Callable[[], object]
BLOCK = 20  # steps between two log lines by default: a block's time has one of them in it


class Turns:
    """Seconds of training steps and of contenders' steps, a `stretch` of each in turn.

    The training loop calls `update` of its objective once a step; what passes from the end of one call to the
    beginning of the next is a step of the loop with all that is around it: data, averages, logs, checkpoints.
    """

    def __init__(self, contenders: Mapping[str, Step], device: torch.device) -> None:
        self.contenders, self.device = contenders, device
        self.stretch = 1 if device.type == "cpu" else BLOCK  # a GPU is not waited for at each step
        self.seconds = defaultdict[str, list[float]](list)
        self._began: float | None = None
        self._steps = 0

    def follow(self, objective: Objective) -> None:
        """Take turns with the training of this objective."""
        update = objective.update

        def updated(progress: Progress) -> None:
            update(progress)
            self._steps += 1
            if self._steps % self.stretch == 0:
                self._take_turns()

        objective.update = updated

    def _take_turns(self) -> None:
        if self._began is not None:
            self.seconds["ours"].append(self._now() - self._began)
            for name, step in self.contenders.items():
                self.seconds[name].append(self.timed(step))
        else:
            for step in self.contenders.values():
                self.timed(step)
        self._began = self._now()

    def timed(self, step: Step) -> float:
        """Seconds of a stretch of a contender's steps."""
        return seconds_of(step, self.stretch, self.device)

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()

    def blocks(self, name: str) -> list[float]:
        """Seconds a step of each whole block of BLOCK steps; the first block warms up and is left out."""
        taken, each = self.seconds[name], BLOCK // self.stretch
        whole = [sum(taken[start : start + each]) / BLOCK for start in range(0, len(taken) - each + 1, each)]
        return whole[1:]

    def ratio(self, name: str, other: str) -> dict[str, Any]:
        """The time of `name` over that of `other`: the median of all blocks, the quartiles, the number of blocks."""
        return spread([mine / theirs for mine, theirs in zip(self.blocks(name), self.blocks(other), strict=True)])

    def milliseconds(self, name: str) -> float:
        """Of a step: the median of all blocks."""
        return 1000 * median(self.blocks(name))


def seconds_of(call: Step, times: int, device: torch.device) -> float:
    """Seconds of so many calls, from when the device has nothing left to do until it has done them."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return time.perf_counter() - began


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of some values."""
    low, _, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    return {"median": median(values), "quartiles": [low, high], "blocks": len(values)}
