"""The model card of a student: what it is, how to use it, how it was made."""

from typing import Any

import diffusers
import torch

from fewstep import __version__
from fewstep.pipeline.config.schema import Config, Training
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.save import stock_call

_CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- consistency-model
- fewstep
---

# {name}: a one-step generator

A consistency model distilled from a DDPM teacher with fewstep {version} ({method}, {kimg:g} kimg at batch {batch}).
It makes {size} images in one or a few network evaluations.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}")      # this folder
images = pipeline(batch_size=16, num_inference_steps=1).images
```

| steps | noise levels |
|---:|:---|
{steps}

{called}
The two-step noise level was chosen from {searched}, by KID of {images} images of a seed block that no result uses,
against {real:,} real images that no result is measured against. The search made {made:,} images by
{evaluations:,} network evaluations, in {seconds:.0f} s.
{averages}Stock diffusers gives the same images as fewstep to {round_trip:.1e} (range 2) at {checked} steps.

- sigma_min {sigma_min:g}, sigma_max {sigma_max:g}, sigma_data {sigma_data:g}; {parameters:,} parameters
- data: `{source}`, split `{split}`; seed {seed}{again}
- made with torch {torch}, diffusers {diffusers}
"""
_WORDS = {4: "four", 8: "eight"}


def model_card(config: Config, training: Training, model: ConsistencyModel, facts: dict[str, Any]) -> str:
    """The text of a student folder's README.md. `facts` is what the student stage's manifest keeps."""
    settings = training.config
    channels, height, width = model.space.shape
    count = model.grid.num_train_timesteps
    steps = [n for n in (1, 2, 4, 8) if n < count]
    calls = {n: ", ".join(f"{key}={value}" for key, value in stock_call(model, n).items()) for n in steps}
    called = [
        f"The levels of {_WORDS[n]} steps are those of `pipeline(batch_size=16, {call})`.\n"
        for n, call in calls.items()
        if n == 4 or n in model.grid.chosen
    ]
    search = facts["search"]
    quality = facts.get("quality", {"halflives": {}, "chosen": ""})
    values = ", ".join(f"{value:.4g} at {name} kimg" for name, value in quality["halflives"].items())
    averages = f"Its weights are the average of half-life {quality['chosen']} kimg, chosen by KID too ({values}).\n"
    rows = [f"| {n} | {', '.join(f'{sigma:.4g}' for sigma in model.step_sigmas(n))} |" for n in steps]
    return _CARD.format(
        name=config.name if training.name == "student" else f"{config.name}-{training.name}",
        version=__version__,
        method=settings.method.name,
        kimg=settings.train.kimg,
        batch=settings.train.batch_size,
        size=f"{width}x{height} {'grey' if channels == 1 else 'RGB'}",
        steps="\n".join(rows),
        called="".join(called),
        searched=", ".join(search["two_steps"]),
        images=search["images"],
        real=search["real"]["count"],
        made=search["cost"]["images"],
        evaluations=search["cost"]["evaluations"],
        seconds=search["cost"]["seconds"],
        averages=averages if len(quality["halflives"]) > 1 else "",
        checked=", ".join(facts["round_trip"]),
        round_trip=max(facts["round_trip"].values()),
        sigma_min=model.sigma_min,
        sigma_max=model.sigma_max,
        sigma_data=model.scaling.sigma_data,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        source=config.data.source,
        split=config.data.split,
        seed=config.seed,
        again=f", training {training.number}" if training.number > 1 else "",
        torch=torch.__version__,
        diffusers=diffusers.__version__,
    )
