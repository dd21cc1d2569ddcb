"""Route A: a v-prediction DDPM network becomes a consistency model without changing what it computes.

With sigma_data = 1 the consistency scalings are those of v prediction with F = -v, up to the sigma_min shift: the
last convolution is negated and only the time embedding, which must now read 250 ln sigma, is fitted anew.
"""

import copy
import math
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.teachers.denoiser import VPDenoiser
from fewstep.teachers.schedule import timestep_of_sigma


def check_convertible(teacher: VPDenoiser, sigma_max: float) -> None:
    """Raise UserError where a teacher cannot become a student by route A."""
    config = teacher.unet.config
    if teacher.prediction != "v_prediction":
        raise UserError("teacher.prediction", teacher.prediction, "only v_prediction teachers can be distilled")
    if config["time_embedding_type"] != "positional":
        remedy = "only positional time embeddings load in the stock consistency pipeline"
        raise UserError("teacher.source", config["time_embedding_type"], remedy)
    if config["out_channels"] != config["in_channels"] or config["center_input_sample"]:
        remedy = "a student needs out_channels == in_channels and center_input_sample = false"
        raise UserError("teacher.source", (config["in_channels"], config["out_channels"]), remedy)
    if not isinstance(config["sample_size"], int):
        raise UserError("teacher.source", config["sample_size"], "a student needs square images (an int sample_size)")
    if sigma_max > teacher.sigma_max:
        largest = math.floor(teacher.sigma_max * 100) / 100
        remedy = f"is above the teacher's largest noise level; give at most {largest}"
        raise UserError("student.sigma_max", sigma_max, remedy)


def convert_teacher(
    teacher: VPDenoiser,
    *,
    sigma_min: float,
    sigma_max: float,
    refit_steps: int,
    generator: torch.Generator,
) -> ConsistencyModel:
    """A consistency model whose f(x, sigma) is the teacher's D(x; sigma), to the accuracy of the refit."""
    check_convertible(teacher, sigma_max)
    unet: UNet2DModel = copy.deepcopy(teacher.unet)
    with torch.no_grad():
        unet.conv_out.weight.neg_()
        if unet.conv_out.bias is not None:
            unet.conv_out.bias.neg_()
    model = ConsistencyModel(unet, sigma_min=sigma_min, sigma_max=sigma_max)
    refit_time_embedding(model, teacher, refit_steps, generator)
    return model.requires_grad_(True).train()


def refit_time_embedding(
    model: ConsistencyModel,
    teacher: VPDenoiser,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 256,
) -> None:
    """Fit the student's embedding network so that emb(250 ln sigma) equals the teacher's emb(t(sigma)).

    A regression of the two embeddings, with ln sigma uniform over the student's range; the rest of the network
    is not evaluated. Adam, cosine decay from 1e-3.
    """
    table = teacher.finite_sigmas.cpu()
    unet, device = model.unet, next(model.parameters()).device
    embedding = unet.time_embedding.requires_grad_(True)
    low, high = torch.tensor([model.sigma_min, model.sigma_max]).log().tolist()
    optimizer = torch.optim.Adam(embedding.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
    for _ in range(steps):
        log_sigma = low + (high - low) * torch.rand(batch_size, generator=generator)
        target = _embed(teacher.unet, timestep_of_sigma(log_sigma.exp(), table).to(device))
        loss = (_embed(unet, 250 * log_sigma.to(device)) - target.detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _embed(unet: UNet2DModel, timestep: Tensor) -> Tensor:
    return unet.time_embedding(unet.time_proj(timestep))


@torch.inference_mode()
def conversion_error(
    model: ConsistencyModel,
    teacher: VPDenoiser,
    images: Tensor,
    generator: torch.Generator,
    sigmas: Sequence[float] = (0.01, 0.05, 0.2, 0.5, 1.0, 2.5, 10.0, 80.0),
) -> dict[float, float]:
    """RMSE of the student's denoiser from the teacher's at each sigma, on images [B,C,H,W] in [-1, 1]."""
    errors = {}
    for value in sigmas:
        sigma = torch.full((len(images),), value, device=images.device)
        eps = torch.randn(images.shape, generator=generator).to(images.device)
        x = images + value * eps
        difference = model(x, sigma) - teacher.denoise(x, sigma)
        errors[value] = float(difference.square().mean().sqrt())
    return errors
