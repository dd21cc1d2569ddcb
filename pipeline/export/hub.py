"""The folder that goes to the hub: the student for stock diffusers, its provenance, and a card of what was measured."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open
from safetensors.torch import save_file

from fewstep.eval.quality.protocol import slug
from fewstep.files import read_json, read_sealed
from fewstep.pipeline.config.reading import kept_config
from fewstep.pipeline.config.teacher import LoadedTeacher
from fewstep.pipeline.export.provenance import header
from fewstep.pipeline.sampling.grammar import in_steps
from fewstep.pipeline.stages.card import LABELLED
from fewstep.pipeline.stages.evaluate import dataset_name
from fewstep.pipeline.stages.manifest import MANIFEST, model_hash, read_manifest

PICTURE = "samples.png"
_TASK = "unconditional-image-generation"
_METRICS = {"fd": "fid", "kid": "kid", "precision": "precision", "recall": "recall"}
"""What the card tells, and its type in the hub's metadata."""


def write_hub_folder(
    run: Path,
    student: Path,
    out: Path,
    facts: Mapping[str, Any],
    calls: Mapping[int, Mapping[str, Any]],
    *,
    repo: str | None = None,
    licence: str | None = None,
) -> None:
    """Copy a run's student into `out` with `facts` in the header of its weights, its card, and a picture.

    `calls`: of the stock pipeline, by number of steps. `repo`: what the card says to load, the hub's OWNER/NAME.
    `licence`: its short name on the hub.
    """
    card = (student / "README.md").read_text(encoding="utf-8")
    for name in read_manifest(student)["outputs"]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            with safe_open(student / name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
                save_file(tensors, out / name, metadata={**(file.metadata() or {}), **header(facts)})
        else:
            shutil.copyfile(student / name, out / name)
    measured = Measured(run, student)
    picture = measured.grid()
    if picture is not None:
        shutil.copyfile(picture, out / PICTURE)
    if repo is not None:
        card = re.sub(r'from_pretrained\(".*"\) +# this folder', f'from_pretrained("{repo}")', card)
    (out / "README.md").write_text(hub_card(card, measured, facts, calls, licence), encoding="utf-8")


class Measured:
    """What a run's results say of one student; nothing where it was not measured, or has been made again since."""

    def __init__(self, run: Path, student: Path) -> None:
        self.config, self.student, self.folder = kept_config(run), student, run / "eval"
        self.samplers: dict[int, dict[str, Any]] = {}
        self.name, self.protocol = "", ""
        if not (self.folder / MANIFEST).is_file():
            return
        models = read_manifest(self.folder)["inputs"]["samplers"]
        benchmark = read_json(self.folder / "benchmark.json", {"metric_name": str, "protocol": {"hash": str}})
        self.name, self.protocol = benchmark["metric_name"], benchmark["protocol"]["hash"]
        for each in self.config.samplers:
            if each.subject == student.name and models.get(str(each)) == model_hash(student):
                quality = read_sealed(self.folder / "samplers" / f"{slug(str(each))}.json")["quality"]
                if quality is not None:
                    self.samplers[each.steps] = quality["metrics"]

    def grid(self) -> Path | None:
        """The picture of the fewest steps."""
        if not self.samplers:
            return None
        path = self.folder / "grids" / f"{slug(f'{self.student.name}@{min(self.samplers)}')}.png"
        return path if path.is_file() else None

    def base_model(self) -> str | None:
        """The hub's name of the teacher, where it came from there."""
        teacher = self.config.teacher
        made = read_manifest(self.student.parent.parent / "teacher")
        return teacher.source if isinstance(teacher, LoadedTeacher) and made.get("from_hub") else None

    def results(self) -> list[EvalResult]:
        """For the hub's model-index: each metric at each number of steps."""
        data = dataset_name(self.config.data.source)
        return [
            EvalResult(
                task_type=_TASK,
                dataset_type=data.removeprefix("hub:"),
                dataset_name=data,
                dataset_split=self.config.data.reference_split or self.config.data.split,
                metric_type=kind,
                metric_name=f"{self.title(key)}, {in_steps(steps)}",
                metric_value=round(metrics[key]["mean"], 6),
                metric_config=f"fewstep protocol {self.protocol}",
            )
            for steps, metrics in sorted(self.samplers.items())
            for key, kind in _METRICS.items()
            if key in metrics
        ]

    def title(self, key: str) -> str:
        """A metric's name for people."""
        return self.name if key == "fd" else key.upper() if key == "kid" else key.capitalize()

    def table(self) -> str:
        """The metrics in markdown, a row for each number of steps."""
        keys = [key for key in _METRICS if all(key in metrics for metrics in self.samplers.values())]
        rows = [f"| steps | {' | '.join(map(self.title, keys))} |", f"|---:|{'---:|' * len(keys)}"]
        for steps, metrics in sorted(self.samplers.items()):
            values = " | ".join(f"{metrics[key]['mean']:.4g}" for key in keys)
            rows.append(f"| {steps} | {values} |")
        return "\n".join(rows)


def hub_card(
    card: str,
    measured: Measured,
    facts: Mapping[str, Any],
    calls: Mapping[int, Mapping[str, Any]],
    licence: str | None,
) -> str:
    """The student's own card with the hub's metadata, the picture and the measured metrics."""
    source = measured.config.data.source
    title = card.partition("\n# ")[2].partition(":")[0]
    kind, _, place = source.partition(":")
    card = card.replace(f"`{source}`", f"`{dataset_name(source)}`")  # of an earlier version, with its folder
    data = ModelCardData(
        model_name=title,
        library_name="diffusers",
        pipeline_tag=_TASK,
        tags=_tags(card),
        datasets=[place] if kind == "hub" else None,
        base_model=measured.base_model(),
        license=licence,
        eval_results=measured.results() or None,
    )
    body = card.split("---\n", 2)[2].strip()
    heading, _, rest = body.partition("\n\n")
    picture = [f"![images of the fewest steps]({PICTURE})"] if measured.grid() else []
    labelled = LABELLED if "num_classes" in facts else ""
    lines = [
        f"images = pipeline(batch_size=16, {labelled}{_arguments(call)}).images  # {in_steps(n)}"
        for n, call in calls.items()
    ]
    rest = re.sub(r"^images = pipeline\(.*$", "\n".join(lines), rest, count=1, flags=re.MULTILINE)
    parts = [heading, *picture, rest]
    if measured.samplers:
        parts += ["## Measured", measured.table(), f"By fewstep's protocol `{measured.protocol}`."]
    made = ", ".join(f"{key.removesuffix('_hash')} `{facts[key][:16]}`" for key in facts if key.endswith("_hash"))
    parts.append(f"sha256 of what it was made from, in the header of its weights in full: {made}.")
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _tags(card: str) -> list[str]:
    """Those of the student's own card."""
    front = card.split("---\n", 2)[1]
    return [line.removeprefix("- ") for line in front.splitlines() if line.startswith("- ")]


def _arguments(call: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in call.items())
