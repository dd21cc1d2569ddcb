"""A student that stock diffusers samples by DDIM: the teacher's network under the teacher's own schedule."""

import math
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor

from fewstep.errors import UserError
from fewstep.students.convert import student_network
from fewstep.students.interfaces import FixedStep, StockCall, Student
from fewstep.teachers.guided import Guided
from fewstep.teachers.interfaces import NONE, Condition, Denoiser, Space
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import SCALINGS
from fewstep.teachers.schedule import vp_table
from fewstep.teachers.solvers import SOLVERS, Draw, Planned, sample_scheduled

PREDICTIONS = ("v_prediction", "sample")
"""What its network can predict: in the first step an error of epsilon is multiplied by sigma_max, up to 20,000."""
OPTIONS = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "thresholding": False}
"""Of its scheduler: from pure noise to sigma = 0, by the very steps that it was trained on."""
_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")


class DDIMStudent(Student):
    """Steps from x = x0 + sigma*eps straight towards D(x; sigma), as DDIM with trailing timesteps does.

    `scheduler` has OPTIONS and a prediction of PREDICTIONS. Estimates are not clamped between steps, images are.
    """

    network: UNet2DModel

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler) -> None:
        table = vp_table(scheduler.alphas_cumprod)
        size: Any = unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        space = Space(
            shape=(unet.config["in_channels"], height, width),
            sigma_min=float(table[0]),
            sigma_max=float(table[-1]),
            table=table,
            clamp=None,
        )
        super().__init__(unet, SCALINGS[scheduler.config["prediction_type"]](table), space)
        self.scheduler = scheduler

    @property
    def most_steps(self) -> int:
        """See `Student`: those of the schedule."""
        return len(self.scheduler.alphas_cumprod)

    def plan(self, steps: int) -> Planned:
        """See `Student`; the schedule is DDIM's trailing timesteps."""
        return replace(SOLVERS["ddim"].plan(self.space, steps), function=sample_ddim)

    def timesteps(self, steps: int) -> list[int]:
        """Those of a call with `steps` steps, descending from the last of the schedule."""
        return [int(t) for t in self.plan(steps).schedule]

    def fixed_steps(self, steps: int) -> list[FixedStep]:
        """See `Student`: in the terms of sigma a step goes the part 1 - sigma'/sigma of the way to D(x; sigma)."""
        table = vp_table(self.scheduler.alphas_cumprod)
        sigmas = table[self.timesteps(steps)]
        kept = torch.cat([sigmas[1:], sigmas.new_zeros(1)]) / sigmas
        c_skip, c_out, c_in, c_noise = self.scaling(sigmas)
        skip, out = (1 - kept) * c_skip + kept, (1 - kept) * c_out
        start = math.sqrt(1 + float(sigmas[0]) ** 2)
        columns = zip(c_in.tolist(), c_noise.tolist(), skip.tolist(), out.tolist(), strict=True)
        return [
            FixedStep(
                noise=0 if index else start, scale=scale, time=time, skip=one, out=two, clamped=index == steps - 1
            )
            for index, (scale, time, one, two) in enumerate(columns)
        ]

    def stock_call(self, steps: int) -> dict[str, Any]:
        """See `Student`."""
        return {"num_inference_steps": steps}

    def pipeline(self) -> DDIMPipeline:
        """See `Student`."""
        return DDIMPipeline(unet=self.clone().network.cpu().float().eval(), scheduler=self.scheduler)

    def stock_calls(self) -> list[StockCall]:
        """See `Student`."""
        return [StockCall({"num_inference_steps": n}, self.plan(n)) for n in (1, 2, 4) if n <= self.most_steps]


def sample_ddim(model: Denoiser, scheduler: DDIMScheduler, draw: Draw, condition: Condition = NONE) -> Tensor:
    """DDIM without noise (Song 2021, eq. 12, sigma_t = 0), as the stock pipeline steps: images [B,C,H,W] in [-1, 1]."""
    return sample_scheduled(model, scheduler, draw, condition).clamp(-1, 1)


def ddim_student(teacher: Preconditioned | Guided, scheduler: DDPMScheduler | None) -> DDIMStudent:
    """A student with the teacher's weights, which computes what the teacher does; UserError for another prediction."""
    if teacher.space.num_classes is not None:
        remedy = "cannot be of DDIM steps: the stock DDIMPipeline takes no classes; choose another method"
        raise UserError("student.method", None, f"a student of a class-conditional teacher {remedy}")
    if teacher.scaling.name not in PREDICTIONS:
        remedy = f"a student of DDIM steps needs one whose teacher.prediction is {' or '.join(PREDICTIONS)}"
        raise UserError("teacher.source", teacher.scaling.name, remedy)
    if scheduler is None:
        raise UserError(
            "teacher.source", teacher.scaling.name, "a student of DDIM steps needs one with a DDPM schedule"
        )
    assert isinstance(teacher.network, UNet2DModel)
    kept = {key: scheduler.config[key] for key in _SCHEDULE} | {"trained_betas": None}
    if scheduler.config["trained_betas"] is not None or kept["beta_schedule"] == "sigmoid":  # DDIM has no sigmoid
        kept = {"num_train_timesteps": len(scheduler.betas), "trained_betas": scheduler.betas.tolist()}
    own = DDIMScheduler(prediction_type=teacher.scaling.name, **kept, **OPTIONS)
    return DDIMStudent(student_network(teacher), own).requires_grad_(True).train()
