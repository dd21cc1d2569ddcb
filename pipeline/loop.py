"""The one training loop: teachers and every distillation method are an Objective handed to it.

It owns device, precision, accumulation, the weight average, checkpoints, logging and signals.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.pipeline.checkpoint import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint
from fewstep.pipeline.config import TrainConfig
from fewstep.pipeline.ema import EMA
from fewstep.pipeline.log import TrainingLog
from fewstep.pipeline.randomness import batch_indices, key, keyed_generator
from fewstep.pipeline.signals import PendingSignal, deferred_signals
from fewstep.progress import ProgressLine, say
from fewstep.teachers.interfaces import Batch, Objective, Progress


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train on, how, and where its files go. `title` also names the stream of its randomness."""

    title: str
    images: Tensor
    """uint8 [N,C,H,W]."""
    labels: Tensor | None
    horizontal_flip: bool
    config: TrainConfig
    seed: int
    config_hash: str
    checkpoints: Path
    log: Path
    tensorboard: Path

    @property
    def total_steps(self) -> int:
        """Optimizer steps: the length in kimg, rounded up to whole batches."""
        return math.ceil(self.config.kimg * 1000 / self.config.batch_size)

    def batch(self, step: int, part: int, device: torch.device) -> Batch:
        """Slice `part` of the global batch of `step`, in [-1, 1]; mirrored by chance where configured."""
        indices = batch_indices(self.seed, len(self.images), self.config.batch_size, step)
        indices = indices.chunk(self.config.slices)[part]
        images = self.images[indices].to(device).float() / 127.5 - 1
        if self.horizontal_flip:
            coin = torch.rand(len(indices), generator=keyed_generator(self.seed, "flip", step, part))
            images = torch.where((coin < 0.5).to(device).reshape(-1, 1, 1, 1), images.flip(-1), images)
        labels = None if self.labels is None else self.labels[indices].to(device)
        return Batch(images=images, labels=labels)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant, or a cosine or straight line down to zero at the end."""
        config = self.config
        warmup = min(1.0, (step + 1) * config.batch_size / max(config.warmup_kimg * 1000, 1e-9))
        fraction = step / self.total_steps
        course = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * fraction)), "linear": 1 - fraction}
        return config.learning_rate * warmup * course[config.decay]


def train(objective: Objective, job: TrainingJob, accelerator: Accelerator) -> nn.Module:
    """Train `objective.network` to the end of the job, from its newest checkpoint; returns the averaged network."""
    config = job.config
    if config.slices % accelerator.num_processes:
        remedy = f"must be a multiple of the number of processes, {accelerator.num_processes}"
        raise UserError(f"{job.title}.train.slices", config.slices, remedy)
    objective.to(accelerator.device).train()
    ema = EMA(objective.network, config.ema_halflife_kimg)
    optimizer = torch.optim.AdamW(
        objective.network.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    state = TrainingState(objective=objective, ema=ema.network, optimizer=optimizer)
    step = 0
    if found := latest_checkpoint(job.checkpoints, job.config_hash, say):
        step = load_checkpoint(found, state)
        say(f"  continues at step {step} of {job.total_steps}")
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    optimizer.zero_grad(set_to_none=True)  # what making the network left (a refit): part of no step, here or resumed
    log = TrainingLog(job.log, job.tensorboard, step) if accelerator.is_main_process else None
    try:
        with deferred_signals() as pending:
            _run(wrapped, optimizer, ema, state, job, accelerator, log, pending, step)
    finally:
        if log:
            log.close()
    return ema.network


def _run(
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    state: TrainingState,
    job: TrainingJob,
    accelerator: Accelerator,
    log: TrainingLog | None,
    pending: PendingSignal,
    start: int,
) -> None:
    objective: Objective = state.objective  # type: ignore[assignment]
    config, total = job.config, job.total_steps
    save_every = max(1, round(config.checkpoint_kimg * 1000 / config.batch_size))
    began, losses = time.monotonic(), state.losses
    with ProgressLine(job.title, total, start) as line:
        for step in range(start, total):
            progress = Progress(step=step, total_steps=total, images=step * config.batch_size)
            for group in optimizer.param_groups:
                group["lr"] = job.learning_rate(step)
            loss, grad_norm, extra = _step(wrapped, optimizer, job, accelerator, progress)
            done = step + 1
            ema.update(objective.network, done * config.batch_size, config.batch_size)
            objective.update(progress)
            losses.append(loss)
            if log and (done % config.log_every == 0 or done == total):
                seconds = time.monotonic() - began
                rate = (done - start) * config.batch_size / 1000 / seconds if seconds > 0 else 0.0
                mean = sum(losses) / len(losses)
                losses.clear()
                record = {"step": done, "kimg": done * config.batch_size / 1000, "loss": mean}
                record |= {"grad_norm": grad_norm, "lr": job.learning_rate(step), "kimg_per_s": rate}
                log.write(record | {"seconds": seconds} | extra)
                line.update(done, f"loss {mean:.4g}  {rate:.3g} kimg/s")
            if accelerator.is_main_process and (done % save_every == 0 or pending.number or done == total):
                save_checkpoint(job.checkpoints, done, state, job.config_hash, config.keep_checkpoints)
            if pending.number:
                say(f"  stopped after step {done} of {total}; the same command continues there")
                pending.leave()


def _step(
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    job: TrainingJob,
    accelerator: Accelerator,
    progress: Progress,
) -> tuple[float, float, dict[str, float]]:
    """One optimizer step over this process's slices: its mean loss, the gradient's norm, numbers to log."""
    per_process = job.config.slices // accelerator.num_processes
    first = accelerator.process_index * per_process
    total_loss, extra = 0.0, {}
    for part in range(first, first + per_process):
        batch = job.batch(progress.step, part, accelerator.device)
        torch.manual_seed(key(job.seed, f"{job.title}-dropout", progress.step, part))
        generator = keyed_generator(job.seed, job.title, progress.step, part)
        with accelerator.no_sync(wrapped) if part + 1 < first + per_process else nullcontext():
            terms = wrapped(batch, progress, generator)
            loss = terms.loss.mean() / per_process
            accelerator.backward(loss)
        total_loss += float(loss.detach())
        extra |= terms.log
    if accelerator.num_processes > 1:  # every process logs, and checks, the loss of the whole batch
        local = torch.tensor(total_loss, dtype=torch.float64, device=accelerator.device)
        total_loss = float(accelerator.reduce(local, reduction="mean"))  # pyright: ignore[reportArgumentType]
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), job.config.gradient_clip)
    grad_norm = float(norm) if norm is not None else 0.0
    if not (math.isfinite(total_loss) and math.isfinite(grad_norm)):
        indices = batch_indices(job.seed, len(job.images), job.config.batch_size, progress.step).tolist()
        raise UserError(
            f"{job.title}.train",
            None,
            f"loss {total_loss}, gradient norm {grad_norm} at step {progress.step} is not finite (images {indices}); "
            f"the last good checkpoint is in {job.checkpoints}; lower {job.title}.train.learning_rate",
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total_loss, grad_norm, extra
