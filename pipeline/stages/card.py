"""The model card of a student: what it is, how to use it, how it was made."""

from typing import Any

import diffusers
import torch

from fewstep import __version__
from fewstep.errors import printable
from fewstep.pipeline.config.schema import Config, Training
from fewstep.pipeline.sampling.grammar import STEPS
from fewstep.pipeline.stages.evaluate import dataset_name
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.interfaces import Student

_CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- {tag}
- fewstep{conditional}
---

# {name}: a one-step generator

A {kind} distilled from {teacher} with fewstep {version} ({method}, {kimg:g} kimg at batch {batch}).
It makes {size} images in one or a few network evaluations.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}")      # this folder
{labels}images = pipeline(batch_size=16, {labelled}num_inference_steps=1).images
```

{classes}{steps}
{averages}Stock diffusers gives the same images as fewstep to {round_trip:.1e} (range 2) at {checked} steps.

- {levels}; {parameters:,} parameters
- data: `{source}`, split `{split}`; seed {seed}{again}
- made with torch {torch}, diffusers {diffusers}
"""
LABELLED = "class_labels=labels, "
"""How a class-conditional student's pipeline is called besides."""
_CONSISTENCY = """| steps | noise levels |
|---:|:---|
{rows}

{called}
{chosen}"""
_CHOSEN = """The two-step noise level was chosen from {searched}, by KID of {images} images of a seed
block that no result uses, against {real:,} real images that no result is measured against. The search made {made:,}
images by {evaluations:,} network evaluations."""
_DDIM = """| steps | timesteps |
|---:|:---|
{rows}

Give `num_inference_steps`: the pipeline's own default is 50. The timesteps are DDIM's trailing ones, on which the
student was trained: none were searched for."""
_CLASSES = """It makes images of {count} classes{named}. Give `class_labels`, one for each image: without them stock
diffusers draws classes from torch's global generator, and a seed gives other images at each call.

"""
_WORDS = {4: "four", 8: "eight"}


def model_card(config: Config, training: Training, model: Student, facts: dict[str, Any]) -> str:
    """The text of a student folder's README.md. `facts` is what the student stage's manifest keeps."""
    settings, guidance = training.config, config.teacher.guidance
    channels, height, width = model.space.shape
    tag, kind, steps, levels = _of_kind(model, facts)
    classes = model.space.num_classes
    quality = facts.get("quality", {"halflives": {}, "chosen": ""})
    values = ", ".join(f"{value:.4g} at {name} kimg" for name, value in quality["halflives"].items())
    averages = f"Its weights are the average of half-life {quality['chosen']} kimg, chosen by KID too ({values}).\n"
    return _CARD.format(
        name=config.name if training.name == "student" else f"{config.name}-{training.name}",
        version=__version__,
        teacher="a diffusion teacher" + (f" under guidance {guidance:g}" if guidance != 1 else ""),
        method=settings.method.name,
        kimg=settings.train.kimg,
        batch=settings.train.batch_size,
        size=f"{width}x{height} {'grey' if channels == 1 else 'RGB'}",
        tag=tag,
        conditional="" if classes is None else "\n- class-conditional",
        labels="" if classes is None else f"labels = [image % {classes} for image in range(16)]\n",
        labelled="" if classes is None else LABELLED,
        classes="" if classes is None else _CLASSES.format(count=classes, named=_named(classes, facts["classes"])),
        kind=kind,
        steps=steps,
        levels=levels,
        averages=averages if len(quality["halflives"]) > 1 else "",
        checked=", ".join(facts["round_trip"]),
        round_trip=max(facts["round_trip"].values()),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        source=dataset_name(config.data.source),
        split=config.data.split,
        seed=config.seed,
        again=f", training {training.number}" if training.number > 1 else "",
        torch=torch.__version__,
        diffusers=diffusers.__version__,
    )


def _named(classes: int, names: list[str] | None) -> str:
    """What the labels of the classes are, in words."""
    labels = [str(label) for label in range(classes)]
    if names is None or names == labels:
        return f", 0 to {classes - 1}"
    return ": " + ", ".join(f"{label} `{printable(name)}`" for label, name in zip(labels, names, strict=True))


def _of_kind(model: Student, facts: dict[str, Any]) -> tuple[str, str, str, str]:
    """By the kind of student: the hub's tag, its name, the table of its steps with what it says of them, its range."""
    if not isinstance(model, ConsistencyModel):
        rows = [f"| {steps} | {', '.join(map(str, times))} |" for steps, times in facts["timesteps"].items()]
        levels = f"sigma {model.space.sigma_min:.4g} to {model.space.sigma_max:.4g}, {model.scaling.name}"
        return "ddim", "DDIM student", _DDIM.format(rows="\n".join(rows)), levels
    search, steps = facts["search"], [n for n in STEPS if n <= model.most_steps]
    rows = [f"| {n} | {', '.join(f'{sigma:.4g}' for sigma in model.step_sigmas(n))} |" for n in steps]
    labelled = "" if model.space.num_classes is None else LABELLED
    calls = {n: labelled + ", ".join(f"{key}={value}" for key, value in model.stock_call(n).items()) for n in steps}
    called = [
        f"The levels of {_WORDS[n]} steps are those of `pipeline(batch_size=16, {call})`.\n"
        for n, call in calls.items()
        if n == 4 or n in model.grid.chosen
    ]
    chosen = "No noise levels were chosen: those of two and more steps are the grid's own."
    if search is not None:
        chosen = _CHOSEN.format(
            searched=", ".join(search["two_steps"]),
            images=search["images"],
            real=search["real"]["count"],
            made=search["cost"]["images"],
            evaluations=search["cost"]["evaluations"],
        )
    text = _CONSISTENCY.format(rows="\n".join(rows), called="".join(called), chosen=chosen)
    levels = f"sigma_min {model.sigma_min:g}, sigma_max {model.sigma_max:g}, sigma_data {model.scaling.sigma_data:g}"
    return "consistency-model", "consistency model", text, levels
