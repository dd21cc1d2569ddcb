"""A stock diffusers pipeline as a Sampler: unconditional or class-conditional, of any class that makes images."""

import copy
import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.schedulers import EulerDiscreteScheduler, LCMScheduler
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.interfaces import Noise
from fewstep.eval.speed.evaluations import each_evaluation
from fewstep.files import read_json
from fewstep.teachers.solvers import SOLVERS
from fewstep.teachers.stock import check_numbers, quiet

PARTS = (ModelMixin, SchedulerMixin)

SCHEDULERS: dict[str, Any] = {name: solver.stock for name, solver in SOLVERS.items()}
SCHEDULERS |= {"euler": EulerDiscreteScheduler, "lcm": LCMScheduler}


def check_index(folder: Path) -> None:
    """UserError unless a pipeline's folder is made of diffusers' own classes, and brings no code along.

    diffusers before 0.38 runs a .py of the folder that its model_index.json names, whatever `trust_remote_code` says.
    """
    if code := next(folder.rglob("*.py"), None):
        raise UserError(code, None, "is code, which is not run: only pipelines of diffusers itself are measured")
    index = read_json(folder / "model_index.json", {"_class_name": str})
    kind = getattr(diffusers, index["_class_name"], None)
    if not isinstance(kind, type) or not issubclass(kind, DiffusionPipeline):
        raise UserError(folder, index["_class_name"], "is no pipeline of the installed diffusers")
    for part, value in index.items():
        if isinstance(value, list) and value != [None, None]:
            library, name = value if len(value) == 2 else (None, None)
            component = getattr(diffusers, name, None) if library == "diffusers" and isinstance(name, str) else None
            if not part.isidentifier() or not isinstance(component, type) or not issubclass(component, PARTS):
                raise UserError(folder, value, f"as its {part!r} is no model or scheduler of the installed diffusers")
            for config in (folder / part).glob("*config.json"):
                check_numbers(config, read_json(config, {}))


class PipelineSampler:
    """A diffusers pipeline called as its users call it, at a number of steps, under its own or another scheduler.

    Images come from `pipeline(generator=[one per image], output_type="np")`; the network evaluations of an image are
    counted in a first call, which also gives the shape and the timesteps.
    """

    kind = "pipeline"

    def __init__(
        self, name: str, label: str, pipeline: DiffusionPipeline, steps: int | None, solver: str | None
    ) -> None:
        self.name, self.steps = name, steps
        self.pipeline: Any = pipeline  # each class has a __call__ of its own, the base class none
        if solver is not None:
            swap_scheduler(name, pipeline, solver)
        self.pipeline.set_progress_bar_config(disable=True)
        self._parameters = inspect.signature(type(pipeline).__call__).parameters
        network, rows = denoising_network(name, pipeline), list[int]()
        config: Any = getattr(network, "config", {})
        self.num_classes: int | None = config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or None
        network.register_forward_pre_hook(stop_if_cancelled)
        parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        self.networks = (network, *(part for part in parts if part is not network))
        self.network_parameters = sum(parameter.numel() for part in parts for parameter in part.parameters())
        with each_evaluation(network, rows.append):
            image = self._call([torch.Generator("cpu").manual_seed(0)], [0])
        self.nfe, self.shape = sum(rows), (image.shape[1], image.shape[2], image.shape[3])
        self.label = f"{label}, {self.nfe} evaluations" if steps is None else f"{label}, {steps} steps"

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] on the CPU."""
        return self._call(list(noise.generators), None if labels is None else labels.tolist())

    def _call(self, generators: list[torch.Generator], labels: list[int] | None) -> Tensor:
        arguments: dict[str, Any] = {"generator": generators, "output_type": "np"}
        if "batch_size" in self._parameters:
            arguments["batch_size"] = len(generators)
        if self.num_classes is not None:
            classes = torch.tensor(labels) if "batch_size" in self._parameters else labels
            arguments["class_labels"] = classes
        if self.steps is not None:
            arguments["num_inference_steps"] = self.steps
        pipeline = copy.copy(self.pipeline)  # a scheduler holds the state of a call, and calls may overlap
        pipeline.scheduler = copy.deepcopy(self.pipeline.scheduler)
        with torch.inference_mode():
            images = pipeline(**arguments).images
        self.schedule = pipeline.scheduler.timesteps.double().tolist()
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def swap_scheduler(name: str, pipeline: DiffusionPipeline, solver: str) -> None:
    """Put a solver in the scheduler's place, with trailing timesteps (first at the noise, last above zero)."""
    known = {kind.__name__ for kind in pipeline.scheduler.compatibles}
    if SCHEDULERS[solver].__name__ not in known:
        fits = [key for key, kind in SCHEDULERS.items() if kind.__name__ in known]
        remedy = f"{solver} cannot take the place of its {type(pipeline.scheduler).__name__}"
        raise UserError(name, None, f"{remedy}; {', '.join(fits) or 'no other solver'} can: give {name}@STEPS")
    with quiet():
        pipeline.scheduler = SCHEDULERS[solver].from_config(pipeline.scheduler.config, timestep_spacing="trailing")


def denoising_network(name: str, pipeline: DiffusionPipeline) -> nn.Module:
    """The network that is called once for each evaluation: `unet` or `transformer`."""
    for part in ("unet", "transformer"):
        if isinstance(network := pipeline.components.get(part), nn.Module):
            return network
    raise UserError(name, None, f"{type(pipeline).__name__} has neither unet nor transformer: not known how to count")
