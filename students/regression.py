"""Trajectory regression: the student learns where each point of its teacher's trajectories ends."""

import torch

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.objective import Distance
from fewstep.students.trajectories import Trajectories
from fewstep.teachers.interfaces import Batch, Condition, Evaluations, LossTerms, Objective, Progress, moved, stratified


class TrajectoryRegression(Objective):
    """loss = distance(f(x_i, s_i), x_L), i < L, on trajectories x_0..x_L of the teacher (Hu 2025).

    A share `at_sigma_max` of each batch starts at i = 0, where one step does; the rest is spread over the others. The
    map that is learned is deterministic, so the regression has no blur of its own. Of a batch its size alone is read.
    """

    cost = Evaluations(student=1)

    def __init__(
        self, network: ConsistencyModel, trajectories: Trajectories, *, distance: Distance, at_sigma_max: float
    ) -> None:
        super().__init__()
        ends = (trajectories.sigmas[0], trajectories.sigmas[-1])
        if ends != (network.sigma_max, network.sigma_min):
            remedy = f"the trajectories go from {ends[0]:g} to {ends[1]:g}: give the student these noise levels"
            raise UserError("student.sigma_max, student.sigma_min", (network.sigma_max, network.sigma_min), remedy)
        self.network, self.trajectories = network, trajectories
        self.distance, self.at_sigma_max = distance, at_sigma_max

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossTerms:
        """Losses [B], of as many trajectories as there are images in the batch."""
        device, num = batch.images.device, len(batch.images)
        index = torch.randint(len(self.trajectories), (num,), generator=generator)
        others = (stratified(num, generator) - self.at_sigma_max) / (1 - self.at_sigma_max)  # below 0: sigma_max
        levels = len(self.trajectories.sigmas) - 1
        level = (1 + (others * (levels - 1)).floor().long()).clamp(0, levels - 1)
        start, end = (moved(points, device) for points in self.trajectories.take(index, level))
        sigma = moved(torch.tensor(self.trajectories.sigmas)[level], device)
        labels = self.trajectories.labels(index)
        condition = Condition(labels=None if labels is None else moved(labels, device))
        estimate = self.network(start, sigma, condition)
        return LossTerms(loss=self.distance(estimate, end), sigma=sigma, estimate=estimate)
