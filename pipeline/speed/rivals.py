"""Two rivals on our networks: loops as people write them, for the comparison of speed alone.

Each is written from its paper's formulas and from the order of work in the program that is published with it, on the
libraries that those use: images one by one through a DataLoader, the average one parameter after the other.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fewstep.pipeline.config.training import TrainConfig


class Endless(torch.utils.data.Sampler[int]):
    """Shuffled indices without an end."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


class Arrays(Dataset):
    """uint8 arrays one by one."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.numpy()

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - an array
        return self.images[index].copy()


class ECTLoop:
    """Easy consistency tuning (Geng 2024): eqs. 10 to 16 at its last stage, RAdam, one worker that loads images."""

    def __init__(self, network: nn.Module, images: Tensor, config: TrainConfig, stage: int = 6) -> None:
        self.network = copy.deepcopy(network).train().requires_grad_(True)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.device = next(self.network.parameters()).device
        self.stage, self.batch_size = stage, config.batch_size
        self.optimizer = torch.optim.RAdam(self.network.parameters(), lr=config.learning_rate, betas=config.betas)
        loader = DataLoader(
            Arrays(images),
            config.batch_size,
            sampler=Endless(len(images)),
            num_workers=1,
            prefetch_factor=2,
            pin_memory=self.device.type == "cuda",
        )
        self.batches = iter(loader)

    def denoiser(self, x: Tensor, sigma: Tensor) -> Tensor:
        """f(x, t) = c_skip*x + c_out*F(c_in*x, 250 ln t), sigma_data = 1."""
        s = sigma.reshape(-1, 1, 1, 1)
        output = self.network(x / (s**2 + 1).sqrt(), 250 * sigma.log()).sample
        return x / (s**2 + 1) + s / (s**2 + 1).sqrt() * output

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        images = next(self.batches).to(self.device).to(torch.float32) / 127.5 - 1
        t = (torch.randn(len(images), device=self.device) * 2.0 - 1.1).exp().clamp(0.002, 80)
        r = (t * (1 - 2.0 ** -(self.stage + 1) * (1 + 8 * torch.sigmoid(-t)))).clamp(min=0.002)
        noise = torch.randn_like(images)
        state = torch.get_rng_state()
        estimate = self.denoiser(images + t.reshape(-1, 1, 1, 1) * noise, t)
        torch.set_rng_state(state)
        with torch.no_grad():
            target = self.denoiser(images + r.reshape(-1, 1, 1, 1) * noise, r)
        loss = (estimate - target).square().flatten(1).sum(1).add(1e-16).sqrt() / (t - r)
        loss.mean().backward()
        for parameter in self.network.parameters():
            if (gradient := parameter.grad) is not None:
                gradient.clamp_(-1e5, 1e5)  # where that loop replaces what is not finite too, in one pass as well
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.network.parameters(), strict=True):
                average.copy_(parameter.detach().lerp(average, 0.999))


class Pictures(Dataset):
    """PIL images one by one, to tensors in [-1, 1]."""

    def __init__(self, images: Tensor) -> None:
        from torchvision import transforms

        arrays = images.permute(0, 2, 3, 1).numpy()
        self.pictures = [Image.fromarray(each.squeeze(-1) if each.shape[-1] == 1 else each) for each in arrays]
        channels = images.shape[1]
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize([0.5] * channels, [0.5] * channels)]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - a tensor, by the transforms
        return self.transform(self.pictures[index])


class AccelerateScript:
    """A DDPM (Ho 2020) trained as scripts for accelerate do it: transforms by image, EMAModel, the loss read."""

    def __init__(
        self, network: nn.Module, scheduler: DDPMScheduler, images: Tensor, config: TrainConfig, cpu: bool
    ) -> None:
        precision = "no" if config.precision == "fp32" else config.precision
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
        model = copy.deepcopy(network).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=config.betas)
        loader = DataLoader(Pictures(images), config.batch_size, shuffle=True, drop_last=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, 500, math.ceil(config.kimg * 1000 / config.batch_size))
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, optimizer, loader, schedule
        )
        self.average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
        self.scheduler, self.clip = scheduler, config.gradient_clip
        self.batches = iter(())
        self.log: dict[str, float] = {}

    def __call__(self) -> None:
        """One step."""
        images = next(self.batches, None)
        if images is None:
            self.batches = iter(self.loader)
            images = next(self.batches)
        noise = torch.randn_like(images)
        total: int = self.scheduler.config["num_train_timesteps"]
        timesteps = torch.randint(0, total, (len(images),), device=images.device)
        with self.accelerator.accumulate(self.model):
            noisy = self.scheduler.add_noise(images, noise, timesteps)  # type: ignore[arg-type]
            target = noise
            if self.scheduler.config["prediction_type"] == "v_prediction":
                target = self.scheduler.get_velocity(images, noise, timesteps)  # type: ignore[arg-type]
            loss = nn.functional.mse_loss(self.model(noisy, timesteps).sample.float(), target)
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        self.average.step(self.model.parameters())
        self.log = {"loss": loss.detach().item(), "lr": self.schedule.get_last_lr()[0]}
