"""Training beside its floor: teacher and every method, rivals, data and logging, arithmetic, a profile."""

import copy
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fewstep.eval.speed.timing import synchronise
from fewstep.pipeline.config.schema import StudentConfig
from fewstep.pipeline.config.teacher import TrainedTeacher
from fewstep.pipeline.config.training import TrainConfig
from fewstep.pipeline.speed.calls import Calls
from fewstep.pipeline.speed.floor import Bare, Floor, bare
from fewstep.pipeline.speed.rivals import AccelerateScript, ECTLoop
from fewstep.pipeline.speed.turns import BLOCK, Step, Turns, seconds_of
from fewstep.pipeline.stages.context import RunContext, training_layout
from fewstep.pipeline.stages.student import student_objective
from fewstep.pipeline.stages.teacher import teacher_objective, trained_model
from fewstep.pipeline.training.job import TrainingJob
from fewstep.pipeline.training.log import TrainingLog
from fewstep.pipeline.training.loop import train
from fewstep.pipeline.training.randomness import TEACHER, training_stream
from fewstep.progress import say
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.convert import convert_teacher
from fewstep.students.ddim import ddim_student
from fewstep.students.interfaces import Student
from fewstep.students.methods import METHODS
from fewstep.students.trajectories import Trajectories, read_trajectories, shard_path, write_record, write_shard
from fewstep.teachers.interfaces import Objective, some_class
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.trajectory import trajectory, trajectory_sigmas

TRAJECTORIES = 256
RIVALS_IMAGES = 10_000  # at most, which lie in memory
MATRIX = 2048  # side of the matrices whose product tells how fast the device multiplies


@dataclass
class Subjects:
    """What is trained, each time anew: an untrained teacher of the configuration, and its students."""

    run: RunContext
    config: TrainedTeacher
    student: StudentConfig

    def teacher(self) -> tuple[Objective, DDPMScheduler | None]:
        """The teacher's objective on the device."""
        objective, scheduler = teacher_objective(self.run, self.config)
        return objective.to(self.run.device), scheduler

    def students(self) -> Iterator[tuple[str, StudentConfig]]:
        """Each method that a student of this teacher can have, alone; the configured one with its finish too."""
        for name, kind in METHODS.items():
            if name in ("lcm", "pd") and not self.config.has_schedule:
                continue
            method = self.student.method if self.student.method.name == name else kind()
            yield name, self.student.model_copy(update={"method": method, "matching": None, "adversarial": None})
        if self.student.matching is not None:
            matching = self.student.matching.model_copy(update={"share": 1.0})
            name = f"{self.student.method.name} with matching"
            yield name, self.student.model_copy(update={"matching": matching, "adversarial": None})

    def objective(self, config: StudentConfig) -> Objective:
        """What distils the untrained teacher by a method."""
        teacher, scheduler = self.model()
        teacher.to(memory_format=training_layout(config.train.precision))
        if config.method.student == "ddim":
            assert scheduler is not None
            model: Student = ddim_student(teacher, scheduler)
        else:
            model = converted(teacher, config)
        source = self._trajectories(teacher, config) if config.method.reads_trajectories else teacher
        return student_objective(config, model, source, teacher)

    def model(self) -> tuple[Preconditioned, DDPMScheduler | None]:
        """The untrained teacher as a denoiser."""
        objective, scheduler = self.teacher()
        return trained_model(objective.network, scheduler, self.config).eval(), scheduler

    def _trajectories(self, teacher: Preconditioned, config: StudentConfig) -> Trajectories:
        folder, settings = self.run.folder / "trajectories", self.run.config.trajectories
        if not folder.exists():
            folder.mkdir(parents=True)
            noise = torch.randn((TRAJECTORIES, *teacher.space.shape), device=self.run.device)
            sigmas = trajectory_sigmas(settings.steps, *config.noise_range)
            condition = some_class(teacher.space, TRAJECTORIES, self.run.device)
            points = trajectory(teacher, sigmas, noise, condition).cpu().to(getattr(torch, settings.dtype))
            write_shard(shard_path(folder, 0), points)
            write_record(folder, TRAJECTORIES, sigmas.float().tolist(), teacher.space.num_classes)
        return read_trajectories(folder)


def converted(teacher: Preconditioned, config: StudentConfig) -> ConsistencyModel:
    """A consistency model with a teacher's weights, its time embedding as it is."""
    ends, generator = config.noise_range, torch.Generator("cpu").manual_seed(0)
    return convert_teacher(teacher, sigma_min=ends[0], sigma_max=ends[1], refit_steps=0, generator=generator)[0]


def measure_training(subjects: Subjects, blocks: int, methods: Collection[str]) -> dict[str, Any]:
    """The "training", "rivals", "overhead", "arithmetic" and "profile" parts of the results.

    blocks: of BLOCK steps each, for a median over them. methods: those that are trained.
    """
    run, rows, rivals = subjects.run, {}, {}
    objective, scheduler = subjects.teacher()
    network, images = bare(objective.network), run.data.first(RIVALS_IMAGES)[0]
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    others: dict[str, Step] = {}
    if scheduler is not None and not subjects.config.class_conditional:
        cpu, settings = run.config.device == "cpu", subjects.config.train
        others["accelerate script"] = _late(lambda: AccelerateScript(plain, scheduler, images, settings, cpu))
    found = _side_by_side(run, "teacher", objective, subjects.config.train, blocks, others)
    rows["teacher"] = found[0]
    rivals |= found[1]
    for name, config in subjects.students():
        if config.method.name not in methods:
            continue
        objective, others = subjects.objective(config), {}
        if name == "ect" and not subjects.config.class_conditional:
            others["ECT loop"] = _late(lambda: ECTLoop(plain, images, config.train))  # noqa: B023 - called in this turn
        found = _side_by_side(run, name, objective, config.train, blocks, others)
        rows[name] = found[0]
        rivals |= found[1]
    objective = subjects.teacher()[0]
    return {
        "training": rows,
        "rivals": rivals,
        "overhead": _overhead(run, subjects.config.train, rows["teacher"]["ms"]),
        "arithmetic": _arithmetic(run, network, subjects.config.train, rows["teacher"]["floor_ms"]),
        "profile": _profile(run, objective, subjects.config.train),
    }


def _late(make: Any) -> Step:  # noqa: ANN401 - a class of rivals
    """A rival that is made at its first step, when the training that it is compared with has set accelerate up."""
    made: list[Step] = []

    def step() -> None:
        if not made:
            made.append(make())
        made[0]()

    return step


def _job(run: RunContext, name: str, config: TrainConfig, steps: int) -> TrainingJob:
    short = config.model_copy(update={"kimg": steps * config.batch_size / 1000, "log_every": BLOCK})
    stream = TEACHER if name == "teacher" else training_stream("student")
    return run.training_job(f"speed/{name}", "teacher" if name == "teacher" else "student", stream, short, name)


def _side_by_side(
    run: RunContext, name: str, objective: Objective, config: TrainConfig, blocks: int, others: Mapping[str, Step]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of the training in turn with its floor, and one for each rival beside it."""
    calls = Calls(type(bare(objective.network)))
    turns = Turns({"floor": Floor(calls.next, config, run.data.shape), **others}, run.device)
    turns.follow(objective)
    calls.follow(objective)  # around the turns, which are no part of a step
    steps = BLOCK * (blocks + 1) + turns.stretch  # the first block warms up, the first stretch begins
    with calls.noted():
        train(objective, _job(run, name, config, steps), run.accelerated(config.precision))
    ms, floor_ms = turns.milliseconds("ours"), turns.milliseconds("floor")
    row = {
        "evaluations": calls.per_image(config.batch_size),
        "cost": asdict(objective.cost),
        "batch_size": config.batch_size,
        "ms": ms,
        "floor_ms": floor_ms,
        "ratio": turns.ratio("ours", "floor"),
        "images_per_second": 1000 * config.batch_size / ms,
    }
    say(f"  {name}: {ms:.1f} ms a step, {row['ratio']['median']:.3f} times its floor")
    rivals = {}
    for other in others:
        rivals[other] = {
            "beside": name,
            "ms": turns.milliseconds(other),
            "images_per_second": 1000 * config.batch_size / turns.milliseconds(other),
            "share_of_floor": turns.ratio("floor", other)["median"],
            "ours_share_of_floor": turns.ratio("floor", "ours")["median"],
            "ours_faster": turns.ratio(other, "ours"),
        }
        say(f"    {other}: {rivals[other]['ms']:.1f} ms, ours is {rivals[other]['ours_faster']['median']:.2f}x as fast")
    return row, rivals


def _overhead(run: RunContext, config: TrainConfig, step_ms: float) -> dict[str, Any]:
    """Milliseconds a step of making the batch, and of a log line spread over the steps between two."""
    job = _job(run, "teacher", config, 10 * BLOCK)
    log = TrainingLog(run.folder / "logs" / "speed.jsonl", run.folder / "logs" / "speed-board", 0)
    record = {"loss": 0.5, "grad_norm": 0.1, "lr": 1e-3, "kimg_per_s": 1.0, "seconds": 1.0}
    log.write({"step": 0, **record})  # opens what it writes to
    data, logging = [], []
    for step in range(job.total_steps):
        began = time.perf_counter()
        job.batch(step, 0, run.device)
        synchronise(run.device)
        data.append(time.perf_counter() - began)
        began = time.perf_counter()
        log.write({"step": step + 1, **record})
        logging.append(time.perf_counter() - began)
    log.close()
    job.batches.close()
    data_ms, log_ms = 1000 * sum(data) / len(data), 1000 * sum(logging) / len(logging) / config.log_every
    return {"data_ms": data_ms, "logging_ms": log_ms, "share_of_step": (data_ms + log_ms) / step_ms}


def _arithmetic(run: RunContext, network: nn.Module, config: TrainConfig, floor_ms: float) -> dict[str, Any]:
    """Floating-point operations a second of the floor's step, beside those of large products of matrices."""
    call = Bare(copy.deepcopy(network).requires_grad_(True), run.data.shape, config.batch_size)
    with FlopCounterMode(display=False) as counter:
        call().float().square().mean().backward()
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    matrix = torch.randn(MATRIX, MATRIX, device=run.device, dtype=dtype)
    times = 1 if run.device.type == "cpu" else 50
    fastest = min(seconds_of(lambda: torch.mm(matrix, matrix), times, run.device) for _ in range(5)) / times
    rate, most = counter.get_total_flops() / floor_ms * 1000, 2 * MATRIX**3 / fastest
    return {"flops_per_step": counter.get_total_flops(), "flops": rate, "matrix_flops": most, "share": rate / most}


def _profile(run: RunContext, objective: Objective, config: TrainConfig) -> list[dict[str, Any]]:
    """Where the time of a training of the teacher goes, by operation, the longest first."""
    gpu = run.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as found:
        train(objective, _job(run, "profile", config, BLOCK), run.accelerated(config.precision))
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    rows = [(event.key, event.count / BLOCK, getattr(event, key) / 1000 / BLOCK) for event in events[:15]]
    return [
        {"operation": name, "calls": calls, "ms": ms, "share": 1000 * ms * BLOCK / total} for name, calls, ms in rows
    ]
