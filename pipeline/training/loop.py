"""The one training loop: teachers and every distillation method are an Objective handed to it.

It owns device, precision, accumulation, the weight averages, checkpoints, logging and signals.
"""

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.pipeline.config.training import TrainConfig
from fewstep.pipeline.training.checkpoint import TrainingState, latest_checkpoint, load_checkpoint, save_checkpoint
from fewstep.pipeline.training.ema import EMA
from fewstep.pipeline.training.faster import set_up
from fewstep.pipeline.training.flat import Flat
from fewstep.pipeline.training.job import TrainingJob
from fewstep.pipeline.training.levels import sums_and_counts
from fewstep.pipeline.training.log import TrainingLog
from fewstep.pipeline.training.processes import training as together_in_steps
from fewstep.pipeline.training.randomness import dropout_stream, key, keyed_generator, seed_dropout
from fewstep.pipeline.training.signals import PendingSignal, deferred_signals, raising_signals
from fewstep.progress import ProgressLine, say
from fewstep.teachers.interfaces import Objective, Progress, moved

Probe = Callable[[Mapping[str, nn.Module]], Mapping[str, float]]
"""What is to be logged of the averages, given by half-life; it changes neither them nor torch's generators."""


def train(
    objective: Objective,
    job: TrainingJob,
    accelerator: Accelerator,
    probe: Probe | None = None,
    probe_kimg: float = math.inf,
) -> dict[str, nn.Module]:
    """Train an objective to the end of the job, from its newest checkpoint; returns the averages of `averaged()`.

    They are named by their half-lives, see `TrainConfig.halflives`. The main process calls `probe` at the first log
    line after every `probe_kimg` and at the end.
    """
    config = job.config
    if job.slices % accelerator.num_processes:
        remedy = f"must be a multiple of the number of processes, {accelerator.num_processes}"
        raise UserError(f"{job.title}.train.slices", job.slices, remedy)
    objective.to(accelerator.device).train()
    emas = {name: EMA(objective.averaged(), kimg) for name, kimg in config.halflives.items()}
    set_up(objective, config, job.title, accelerator.device)
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=objective.partial)  # type: ignore[assignment]
    wrapped = accelerator.prepare(objective)  # moves the weights, which lie in one piece from then on
    averages = {name: ema.network for name, ema in emas.items()}
    kept = nn.ModuleList(averages.values()) if len(averages) > 1 else next(iter(averages.values()))
    groups = objective.parameter_groups()
    flats = [Flat(group["params"]) for group in groups]
    for ema in emas.values():
        ema.lie_like(flats)
    whole = [{**group, "params": [flat.whole]} for group, flat in zip(groups, flats, strict=True)]
    optimizer = _optimizer(whole, config)
    state = TrainingState(objective=objective, ema=kept, optimizer=optimizer)
    step = 0
    if found := latest_checkpoint(job.checkpoints, job.config_hash, say):
        step = load_checkpoint(found, state)
        say(f"  continues at step {step} of {job.total_steps}")
    objective.zero_grad(set_to_none=True)  # what making the network left (a refit): part of no step, here or resumed
    log = TrainingLog(job.log, job.tensorboard, step) if accelerator.is_main_process else None
    try:
        with together_in_steps(), deferred_signals() as pending:
            skips = config.optimizer == "adamw"  # it alone can leave out an update by itself: see `_Training.step`
            late = skips and _is_asynchronous(accelerator.device) and accelerator.num_processes == 1
            training = _Training(job, accelerator, wrapped, flats, optimizer, emas, state, log, pending, late)
            training.run(step, probe, probe_kimg)
    finally:
        job.batches.close()
        if log:
            log.close()
    return averages


def _optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of an objective's groups; weight decay is decoupled from the gradient (Loshchilov 2019) in both."""
    given = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "radam":
        return torch.optim.RAdam(groups, decoupled_weight_decay=True, **given)
    return torch.optim.AdamW(groups, fused=True, **given)


def _is_asynchronous(device: torch.device) -> bool:
    """Whether the device goes on by itself while the processor prepares the next step."""
    return device.type == "cuda"


@dataclass
class _Training:
    """A job at work in this process: its networks as prepared for the device, and all that a step touches.

    late: the device itself leaves out an update that is not finite, and the numbers of its steps are read when they
    are logged or a checkpoint is written, so that the processor need not wait for it each step.
    """

    job: TrainingJob
    accelerator: Accelerator
    wrapped: nn.Module
    flats: list[Flat]
    optimizer: torch.optim.Optimizer
    emas: dict[str, EMA]
    state: TrainingState
    log: TrainingLog | None
    pending: PendingSignal
    late: bool
    unread: list["_Taken"] = field(default_factory=list)
    by_level: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Losses [B] of this process and their noise levels [B], of the steps since the last log line or checkpoint."""
    grad_norm: float = 0.0
    """Of the first group in the last step that was read."""
    signal: int | None = None
    """What any process of several had got by the last step."""

    def run(self, start: int, probe: Probe | None, probe_kimg: float) -> None:
        """Train from step `start` to the end; a signal ends it after the step in which it arrives."""
        job, config, total = self.job, self.job.config, self.job.total_steps
        objective: Objective = self.state.objective  # type: ignore[assignment]
        save_every = max(1, round(config.checkpoint_kimg * 1000 / config.batch_size))
        began, losses = time.monotonic(), self.state.losses
        with ProgressLine(job.title, total, start) as line:
            for step in range(start, total):
                progress = Progress(step=step, total_steps=total, images=step * config.batch_size)
                learning_rate = job.learning_rate(step) * objective.pace(progress)
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("lr_scale", 1.0)
                extra = self.step(progress)
                done = step + 1
                for ema in self.emas.values():
                    ema.update(done * config.batch_size, config.batch_size)
                objective.update(progress)
                logs, saves = (bool(done % every == 0 or done == total) for every in (config.log_every, save_every))
                probed = self.probed(probe) if probe and logs and self._probe_is_due(done, probe_kimg) else {}
                stop = self.signal if self.accelerator.num_processes > 1 else self.pending.number
                if logs or saves or stop:
                    self.read()
                    self.sort_by_level()
                if logs:
                    mean, by_level = sum(losses) / len(losses), self.state.levels.means()
                    losses.clear()
                    if self.log:
                        seconds = time.monotonic() - began
                        rate = (done - start) * config.batch_size / 1000 / seconds if seconds > 0 else 0.0
                        record = {"step": done, "kimg": done * config.batch_size / 1000, "loss": mean}
                        record |= {"grad_norm": self.grad_norm, "lr": job.learning_rate(step), "kimg_per_s": rate}
                        record |= {"seconds": seconds} | {name: float(value) for name, value in extra.items()}
                        self.log.write(record | by_level | dict(probed))
                        line.update(done, f"loss {mean:.4g}  {rate:.3g} kimg/s")
                if self.log and (saves or stop):
                    self.log.sync()
                    save_checkpoint(job.checkpoints, done, self.state, job.config_hash, config.keep_checkpoints)
                if stop:
                    say(f"  stopped after step {done} of {total}; the same command continues there")
                    self.pending.number = stop
                    self.pending.leave()

    def step(self, progress: Progress) -> dict[str, Tensor]:
        """One optimizer step over this process's slices; returns what the objective logs."""
        job, accelerator = self.job, self.accelerator
        per_process = job.slices // accelerator.num_processes
        first = accelerator.process_index * per_process
        losses, totals = list[Tensor](), list[Tensor]()
        each: list[Tensor] = []
        sigmas: list[Tensor] = []
        extra: dict[str, Tensor] = {}
        for part in range(first, first + per_process):
            batch = job.batch(progress.step, part, accelerator.device)
            seed_dropout(key(job.seed, dropout_stream(job.stream), progress.step, part), accelerator.device)
            generator = keyed_generator(job.seed, job.stream, progress.step, part)
            with accelerator.no_sync(self.wrapped) if part + 1 < first + per_process else nullcontext():
                terms = self.wrapped(batch, progress, generator)
                total = terms.loss.mean() / per_process
                total.backward()
            totals.append(total.detach())
            each.append((terms.loss if terms.shown is None else terms.shown).detach())
            losses.append(each[-1].mean() / per_process)
            sigmas.append(terms.sigma)
            extra |= terms.log
        self.by_level.append((torch.cat(each), torch.cat(sigmas)))
        shown, minimised = torch.stack(losses).float(), torch.stack(totals).float()
        taken = _Taken(progress.step, shown, minimised, self.clip())
        self.unread.append(taken)
        if self.late:
            # where this is 1, a fused step changes neither weights nor moments: torch.amp.GradScaler's way to skip one
            self.optimizer.found_inf = (~taken.checked.isfinite().all()).float()  # type: ignore[attr-defined]
        else:
            self.read()
        self.optimizer.step()
        return extra

    def clip(self) -> Tensor:
        """Clip each group of parameters by its own norm, so that none scales another's step; the norms before [G].

        That of a group without a gradient in this step is 0.
        """
        norms = [flat.clip(self.job.config.gradient_clip) for flat in self.flats]
        return torch.stack([moved(norm, self.accelerator.device) for norm in norms])

    def _probe_is_due(self, done: int, probe_kimg: float) -> bool:
        """Whether a multiple of `probe_kimg` lies between the last log line and step `done`, or training ends."""
        config = self.job.config
        last = (done - 1) // config.log_every * config.log_every
        passed = [step * config.batch_size / 1000 // probe_kimg for step in (last, done)]
        return done == self.job.total_steps or passed[0] < passed[1]

    def probed(self, probe: Probe) -> Mapping[str, float]:
        """What the main process logs of the averages; nothing where a signal has come, which ends a probe at once."""
        self.read()
        if self.log is None or self.pending.number:
            return {}
        try:
            with raising_signals():
                return probe({name: ema.network for name, ema in self.emas.items()})
        except (KeyboardInterrupt, SystemExit) as left:
            self.pending.number = signal.SIGINT if isinstance(left, KeyboardInterrupt) else signal.SIGTERM
            return {}

    def read(self) -> None:
        """Take the numbers of the steps since the last call from the device; UserError where one is not finite."""
        job = self.job
        for taken in self.unread:
            parts, norms = taken.losses.tolist(), taken.norms.tolist()
            loss, total = sum(parts), sum(taken.totals.tolist())
            self.grad_norm = norms[0]
            if self.accelerator.num_processes > 1:
                loss, total, self.signal = self._shared(loss, total)
            if not all(map(math.isfinite, (loss, total, *norms))):
                indices = job.feed.indices(taken.step).tolist()
                raise UserError(
                    f"{job.title}.train",
                    None,
                    f"loss {total}, gradient norm {', '.join(map(str, norms))} at step {taken.step} is not finite "
                    f"(images {indices}); the last good checkpoint is in {job.checkpoints}; "
                    f"lower {job.title}.train.learning_rate",
                )
            self.state.losses.append(loss)
        self.unread.clear()

    def sort_by_level(self) -> None:
        """Take the losses by noise level into the state, those of all processes."""
        each = [sums_and_counts(*step) for step in self.by_level]  # a finish that begins makes a method's part smaller
        self.by_level.clear()
        found = torch.stack(each).double()
        if self.accelerator.num_processes > 1:
            found = self.accelerator.reduce(found)
        for sums, counts in found.tolist():  # type: ignore[union-attr]
            self.state.levels.add(sums, counts)

    def _shared(self, loss: float, total: float) -> tuple[float, float, int | None]:
        """The losses of the whole batch, which every process checks, and the signal that any has got.

        A signal that comes after this waits for the next step, so that all leave together.
        """
        mine = [[loss, total, self.pending.number or 0]]
        local = torch.tensor(mine, dtype=torch.float64, device=self.accelerator.device)
        everywhere: Tensor = self.accelerator.gather(local)  # type: ignore[assignment]
        loss, total = everywhere[:, :2].mean(0).tolist()
        return loss, total, int(everywhere[:, 2].max()) or None


@dataclass(frozen=True)
class _Taken:
    """A step that was taken, on the device: losses of this process's slices, norms of the groups.

    losses: those that are shown; totals: those that were minimised.
    """

    step: int
    losses: Tensor
    totals: Tensor
    norms: Tensor

    @property
    def checked(self) -> Tensor:
        """All that must be finite."""
        return torch.cat([self.losses, self.totals, self.norms])
