"""The teacher stage: train a DDPM teacher, or take one from elsewhere."""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from fewstep.errors import UserError
from fewstep.pipeline.config.teacher import LoadedTeacher, TrainedTeacher
from fewstep.pipeline.stages.checks import MEASURING
from fewstep.pipeline.stages.context import RunContext, training_layout
from fewstep.pipeline.stages.manifest import folder_hash
from fewstep.pipeline.training.loop import train
from fewstep.pipeline.training.randomness import TEACHER, TEACHER_WEIGHTS, key
from fewstep.progress import say
from fewstep.teachers.folder import fetched
from fewstep.teachers.guided import Guided
from fewstep.teachers.interfaces import Objective
from fewstep.teachers.load import ddpm_model, load_teacher, own_model, read_teacher, save_teacher
from fewstep.teachers.network import build_scheduler, build_unet
from fewstep.teachers.objective import LEVELS, DDPMObjective, DenoisingObjective
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import SCALINGS
from fewstep.teachers.solvers import levels


def loaded_inputs(config: LoadedTeacher) -> dict[str, Any]:
    """What a loaded teacher is made from: a hash of its files, and how they are read.

    The hash is "" where there is no such folder and no hub id, which loading tells.
    """
    folder = Path(config.source).expanduser()
    found = ""
    if folder.is_dir():
        found = folder_hash(folder)
    elif config.source.count("/") == 1:
        found = folder_hash(fetched(config.source, config.revision))
    return {"teacher.source": found} | ({"teacher.null_class": True} if config.null_class else {})


def teacher_of(run: RunContext) -> Preconditioned | Guided:
    """The run's teacher on its device, as its samplers follow it and its students learn from it."""
    teacher = load_teacher(run.folder / "teacher", run.device)
    guidance = run.config.teacher.guidance
    if guidance == 1:
        return teacher
    _check_guidance(teacher, guidance)
    return Guided(teacher, guidance)


def _check_guidance(teacher: Preconditioned, guidance: float) -> None:
    """UserError for guidance of a teacher that cannot be asked for no class."""
    if guidance != 1 and not teacher.space.null_class:
        remedy = "needs a teacher that can be asked for no class: one trained with label_dropout, or null_class"
        raise UserError("teacher.guidance", guidance, remedy)


def make_teacher(run: RunContext, stage: Path | None, config_hash: str) -> dict[str, Any]:
    """Fill `stage` with the folder of a diffusers model of the averaged weights; None: train beside who does."""
    config = run.config.teacher
    if isinstance(config, LoadedTeacher):
        return {} if stage is None else _loaded(run, config, stage)
    shape = run.data.shape
    objective, scheduler = teacher_objective(run, config)
    parameters = sum(parameter.numel() for parameter in objective.network.parameters())
    of = f" of {run.num_classes} classes" if config.class_conditional else ""
    say(
        f"teacher: training a UNet of {parameters / 1e6:.2f} M parameters ({config.prediction}) on "
        f"{len(run.data):,} images of {shape[0]}x{shape[1]}x{shape[2]}{of} for {config.train.kimg:g} kimg"
    )
    job = run.training_job("teacher", "teacher", TEACHER, config.train, config_hash)
    (average,) = train(objective, job, run.accelerated(config.train.precision)).values()
    if stage is None:
        return {}
    average = average.cpu().to(memory_format=torch.contiguous_format)
    save_teacher(trained_model(average, scheduler, config), scheduler, stage)
    return {"network_parameters": parameters}


def teacher_objective(run: RunContext, config: TrainedTeacher) -> tuple[Objective, DDPMScheduler | None]:
    """What trains a new teacher, on the processor, and its schedule where it has one."""
    network, dropout = config.network, config.label_dropout
    classes = run.num_classes if config.class_conditional else None
    shape = run.data.shape
    unet = build_unet(
        shape,
        channels=network.channels,
        layers_per_block=network.layers_per_block,
        attention=network.attention,
        norm_groups=network.norm_groups,
        dropout=network.dropout,
        seed=key(run.config.seed, TEACHER_WEIGHTS),
        classes=None if classes is None else classes + config.null_class,
        fourier=config.prediction == "ve",
    ).to(memory_format=training_layout(config.train.precision))  # type: ignore[call-arg]
    if config.prediction in ("v_prediction", "epsilon", "sample"):
        scheduler = build_scheduler(config.num_train_timesteps, config.schedule, config.prediction)
        return DDPMObjective(unet, scheduler, None if classes is None else dropout), scheduler
    scaling = SCALINGS[config.prediction]()
    model = own_model(unet, scaling, LEVELS[type(scaling)].ends, null_class=config.null_class)
    return DenoisingObjective(model, dropout), None


def trained_model(network: nn.Module, scheduler: DDPMScheduler | None, config: TrainedTeacher) -> Preconditioned:
    """The denoiser of what a `teacher_objective` trains, its `network` or an average of that."""
    if scheduler is None:
        return cast(Preconditioned, network)
    return ddpm_model(cast(UNet2DModel, network), scheduler, null_class=config.null_class)


def _loaded(run: RunContext, config: LoadedTeacher, stage: Path) -> dict[str, Any]:
    """Fill `stage` with a teacher from elsewhere; UserError where it does not suit the data or the samplers."""
    say(f"teacher: loading {config.source}")
    teacher, scheduler = read_teacher(config.source, revision=config.revision, null_class=config.null_class)
    made, needed = ("x".join(map(str, shape)) for shape in (teacher.space.shape, run.data.shape))
    if made != needed:
        remedy = f"makes images of {made} and the data are {needed}: set data.image_size and data.channels"
        raise UserError("teacher.source", config.source, remedy)
    if run.until in MEASURING:
        run.config.check_steps(len(levels(teacher.space)))
    if (classes := teacher.space.num_classes) is not None and run.num_classes > classes:
        remedy = f"has {classes} classes and the data's labels go up to {run.num_classes - 1}"
        raise UserError("teacher.source", config.source, remedy)
    _check_guidance(teacher, config.guidance)
    save_teacher(teacher, scheduler, stage)
    facts = {"source": config.source, "from_hub": not Path(config.source).expanduser().is_dir()}
    return facts | ({} if config.revision is None else {"revision": config.revision})
