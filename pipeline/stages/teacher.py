"""The teacher stage: train a DDPM teacher, or take one from elsewhere."""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DModel

from fewstep.errors import UserError
from fewstep.pipeline.config.schema import LoadedTeacher
from fewstep.pipeline.sampling.subjects import HUB_ID, fetch
from fewstep.pipeline.stages.context import RunContext, training_layout
from fewstep.pipeline.stages.manifest import folder_hash
from fewstep.pipeline.training.loop import train
from fewstep.pipeline.training.randomness import key
from fewstep.progress import say
from fewstep.teachers.load import ddpm_model, read_teacher, save_teacher
from fewstep.teachers.network import build_scheduler, build_unet
from fewstep.teachers.objective import DDPMObjective
from fewstep.teachers.solvers import levels


def source_hash(source: str) -> str:
    """A hash of the model in a folder or under a hub id, by its files; "" where there is none, which loading tells."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not HUB_ID.fullmatch(source):
            return ""
        folder = fetch("teacher.source", source)
    return folder_hash(folder)


def make_teacher(run: RunContext, stage: Path, config_hash: str) -> dict[str, Any]:
    """Fill `stage` with a stock DDPMPipeline folder of the averaged weights."""
    config = run.config.teacher
    if isinstance(config, LoadedTeacher):
        say(f"teacher: loading {config.source}")
        teacher, scheduler = read_teacher(config.source)
        made, needed = ("x".join(map(str, shape)) for shape in (teacher.space.shape, run.data.images.shape[1:]))
        if made != needed:
            remedy = f"makes images of {made} and the data are {needed}: set data.image_size and data.channels"
            raise UserError("teacher.source", config.source, remedy)
        run.config.check_steps(len(levels(teacher.space)))
        save_teacher(teacher, scheduler, stage)
        return {"source": config.source, "from_hub": not Path(config.source).expanduser().is_dir()}
    shape: tuple[int, int, int] = tuple(run.data.images.shape[1:])  # type: ignore[assignment]
    network = config.network
    unet = build_unet(
        shape,
        channels=network.channels,
        layers_per_block=network.layers_per_block,
        attention=network.attention,
        norm_groups=network.norm_groups,
        dropout=network.dropout,
        seed=key(run.config.seed, "teacher-weights"),
    ).to(memory_format=training_layout(config.train.precision))  # type: ignore[call-arg]
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    say(
        f"teacher: training a UNet of {parameters / 1e6:.2f} M parameters ({config.prediction}) on "
        f"{len(run.data.images):,} images of {shape[0]}x{shape[1]}x{shape[2]} for {config.train.kimg:g} kimg"
    )
    scheduler = build_scheduler(config.num_train_timesteps, config.schedule, config.prediction)
    job = run.training_job("teacher", "teacher", config.train, config_hash)
    (average,) = train(DDPMObjective(unet, scheduler), job, run.accelerated(config.train.precision)).values()
    unet = cast(UNet2DModel, average.cpu().to(memory_format=torch.contiguous_format))
    save_teacher(ddpm_model(unet, scheduler), scheduler, stage)
    return {"network_parameters": parameters}
