"""The model card of a student: what it is, how to use it, how it was made."""

from typing import Any

import diffusers
import torch

from fewstep import __version__
from fewstep.pipeline.config.schema import Config
from fewstep.students.consistency import ConsistencyModel

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

The two-step noise level was chosen from {searched} on a seed block of its own.
Stock diffusers gives the same images as fewstep to {round_trip:.1e} (range 2) at {checked} steps.

- sigma_min {sigma_min:g}, sigma_max {sigma_max:g}, sigma_data {sigma_data:g}; {parameters:,} parameters
- data: `{source}`, split `{split}`; seed {seed}
- made with torch {torch}, diffusers {diffusers}
"""


def model_card(config: Config, student: str, model: ConsistencyModel, facts: dict[str, Any]) -> str:
    """The text of a student folder's README.md. `facts` is what the student stage's manifest keeps."""
    settings = config.students[student]
    channels, height, width = model.shape
    count = model.grid.num_train_timesteps
    steps = [n for n in (1, 2, 4, 8) if n < count]
    rows = [f"| {n} | {', '.join(f'{sigma:.4g}' for sigma in model.step_sigmas(n))} |" for n in steps]
    return _CARD.format(
        name=config.name if student == "student" else f"{config.name}-{student}",
        version=__version__,
        method=settings.method.name,
        kimg=settings.train.kimg,
        batch=settings.train.batch_size,
        size=f"{width}x{height} {'grey' if channels == 1 else 'RGB'}",
        steps="\n".join(rows),
        searched=", ".join(facts["search"]["values"]),
        checked=", ".join(facts["round_trip"]),
        round_trip=max(facts["round_trip"].values()),
        sigma_min=model.sigma_min,
        sigma_max=model.sigma_max,
        sigma_data=model.sigma_data,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        source=config.data.source,
        split=config.data.split,
        seed=config.seed,
        torch=torch.__version__,
        diffusers=diffusers.__version__,
    )
