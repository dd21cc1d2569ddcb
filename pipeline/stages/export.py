"""`fewstep export RUN`: a student as files, each run in its own runtime and held against stock diffusers."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep import __version__
from fewstep.errors import UserError
from fewstep.eval import seeds
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.interfaces import Sampler
from fewstep.eval.noise import KeyedNoise
from fewstep.eval.speed.environment import environment
from fewstep.files import read_json, sha256_file, sha256_json, write_json
from fewstep.pipeline.config.reading import kept_config
from fewstep.pipeline.export import formats as writing
from fewstep.pipeline.export.hub import write_hub_folder
from fewstep.pipeline.export.names import EXACT, FORMATS, PARITY, SUFFIXES
from fewstep.pipeline.export.parity import Stock, StockSampler, fault, parity
from fewstep.pipeline.export.speed import fastest_session, side_by_side
from fewstep.pipeline.sampling.grammar import in_steps
from fewstep.pipeline.sampling.models import prepare_to_sample, student_sampler
from fewstep.pipeline.sampling.onnx import OnnxSampler
from fewstep.pipeline.sampling.pt2 import open_program
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.stages.evaluate import reference_of
from fewstep.pipeline.stages.lock import run_lock
from fewstep.pipeline.stages.manifest import (
    MANIFEST,
    changed_inputs,
    make_stage,
    model_hash,
    read_manifest,
    verify_outputs,
)
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.students.graph import LABELS, Generator
from fewstep.students.interfaces import Student
from fewstep.students.load import load_student, student_folder

CPU = torch.device("cpu")


def export(
    run: Path,
    formats: Sequence[str] = ("onnx",),
    steps: Sequence[int] = (1, 2),
    *,
    student: str | None = None,
    pixels: bool = False,
    images: int | None = None,
    out: Path | None = None,
) -> Path:
    """Write a run's student in `formats`, a file for each of `steps`, with parity.json; returns the folder.

    `student` names one where the run has several. `pixels`: images come out as uint8 [B, H, W, C]. `images`: how many
    of each file are made for its FD; None: as many as the run's results are of. `out`: by default RUN/export, of a run
    with several students RUN/export/NAME. UserError: no student, or one that has changed since it was made; steps that
    it does not have; a format that this machine cannot write; a file that does not make the images of stock diffusers:
    then nothing is left of all.
    """
    named = student_folder(run, student)
    folder = out.absolute() if out else export_folder(run, named)
    with run_lock(run), raising_signals():
        job = Export(run, named, pixels=pixels, images=images)
        config = job.context.config
        if max(steps) > job.student.most_steps:
            raise UserError("--steps", max(steps), f"this student makes 1 to {job.student.most_steps} steps")
        measured = run / "eval" / MANIFEST
        inputs = {
            "student": model_hash(job.student_folder),
            "results": sha256_file(measured) if measured.is_file() else None,
            "extractor": config.eval.extractor,
            "formats": [name for name in FORMATS if name in formats],
            "steps": sorted(set(steps)),
            "output": "uint8" if pixels else "float32",
            "images": job.images,
            "version": __version__,
        }
        earlier = _earlier(folder)
        if changed_inputs(folder, "export", inputs) == {}:
            verify_outputs(folder)
            say("export: up to date")
        else:
            facts = {"config_hash": sha256_json(config.to_dict()), "environment": environment(CPU)}
            make_stage(folder, "export", inputs, facts, lambda stage: job.write(stage, inputs))
            if gone := sorted(earlier - {path.name for path in folder.iterdir()}):
                say(f"  no longer there, as they were not asked for: {', '.join(gone)}")
        for line in summary(folder):
            say(line)
        say(str(folder))
    return folder


def export_folder(run: Path, student: Path) -> Path:
    """Where a student's files go: RUN/export, of several students RUN/export/NAME."""
    several = len(list((run / "students").glob("[!.]*/model_index.json"))) > 1
    return run / "export" / student.name if several else run / "export"


def _earlier(folder: Path) -> set[str]:
    """The names in a folder that is about to be replaced; UserError: another than an export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return set()
    if not (folder / MANIFEST).is_file() or read_manifest(folder)["stage"] != "export":
        raise UserError(folder, None, "exists and was not made by fewstep export: give another folder with -o")
    return {path.name for path in folder.iterdir()}


class Export:
    """One export in progress."""

    def __init__(self, run: Path, folder: Path, *, pixels: bool = False, images: int | None = None) -> None:
        verify_outputs(folder)
        self.run, self.student_folder, self.pixels = run, folder, pixels
        self.context = RunContext(kept_config(run), run)
        self.images = images or self.context.config.eval.images
        self.student: Student = load_student(folder)

    @cached_property
    def eager(self) -> Student:
        """The student as the benchmark runs it."""
        eager = self.student.clone()
        prepare_to_sample(eager)
        return eager

    def write(self, stage: Path, inputs: dict[str, Any]) -> dict[str, Any]:
        """Fill the stage's folder; what is not offered is not left in it."""
        config = self.context.config.eval
        extractor = load_extractor(config.extractor, config.weights, CPU)
        reference, *_ = reference_of(self.context, extractor)
        found: list[dict[str, Any]] = []
        for steps in inputs["steps"]:
            say(f"export: {in_steps(steps)}, {self.images:,} images of stock diffusers")
            stock = Stock.of(StockSampler(self.student_folder, self.student, steps), self.images, reference, extractor)
            for name in inputs["formats"]:
                if name == "safetensors" and found and any(each["format"] == name for each in found):
                    continue  # one folder for all steps
                found.append(self._one(stage, name, steps, stock))
            if "onnx" not in inputs["formats"]:  # which the others of its kind were made of
                self._path(stage, "onnx", steps).unlink(missing_ok=True)
        refused = [each for each in found if each["fault"]]
        if exact := [each for each in refused if each["format"] in EXACT]:
            raise UserError(exact[0]["file"], None, f"{exact[0]['fault']}: nothing was exported")
        if len(refused) == len(found):
            raise UserError(refused[0]["file"], None, f"{refused[0]['fault']}: nothing was exported")
        for each in refused:
            (stage / each["file"]).unlink()
        judge = extractor.to_json() | {"metric_name": extractor.metric_name}
        value = {"format": 1, "student_hash": inputs["student"], "environment": environment(CPU), "extractor": judge}
        value |= {"protocol": self._protocol()}
        write_json(stage / PARITY, value | {"files": found})
        if any("onnx" in each["format"] and not each["fault"] for each in found):
            for name in ("sample.py", "sample.cpp"):
                shutil.copyfile(str(files("fewstep.pipeline.export") / "standalone" / name), stage / name)
        return {}

    def _one(self, stage: Path, name: str, steps: int, stock: Stock) -> dict[str, Any]:
        """Write one file, run it in its own runtime, and tell what was found."""
        facts = self.facts([steps])
        if name == "safetensors":
            path = stage / "diffusers"
            write_hub_folder(self.run, self.student_folder, path, self.facts(self.all_steps()), self.calls())
            return self._judged(path, name, steps, StockSampler(path, load_student(path), steps), stock, {})
        path, generator = self._path(stage, name, steps), Generator(self.student, steps, pixels=self.pixels)
        say(f"  {path.name}")
        facts["inputs"] = generator.inputs
        if name in ("pt2", "aoti"):
            write = writing.write_program if name == "pt2" else writing.write_package
            write(generator, path, facts)
            sampler = open_program(path.name, path.name, path, CPU, trust=True)
            return self._judged(path, name, steps, sampler, stock, {})
        plain = self._path(stage, "onnx", steps)
        if not plain.exists():
            writing.write_onnx(generator, plain, facts)
        if name == "onnx-fp16":
            writing.write_half(plain, path, facts)
        elif name == "onnx-int8":
            writing.write_int8(plain, path, self._feeds(generator.inputs), facts)
        session = fastest_session(path)
        sampler = OnnxSampler(path.name, path.name, path, session["threads"], session["optimization"])
        return self._judged(path, name, steps, sampler, stock, {"session": session})

    def _path(self, stage: Path, name: str, steps: int) -> Path:
        """The file of a format."""
        return stage / f"{self.student_folder.name}-{steps}step{SUFFIXES[name]}"

    def _judged(
        self, path: Path, name: str, steps: int, sampler: Sampler, stock: Stock, more: dict[str, Any]
    ) -> dict[str, Any]:
        found = parity(sampler, stock)
        wrong = fault(found, steps=steps, exact=name in EXACT, pixels=self.pixels and name != "safetensors")
        rates = {}
        if name != "safetensors":
            rates = side_by_side({"torch": student_sampler(self.eager, steps), "file": sampler})
        about = {"file": path.name, "format": name, "steps": steps, "bytes": _bytes(path), "fault": wrong}
        return about | found | more | {"speed": rates}

    def _feeds(self, inputs: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """What int8 is calibrated on: noise of a seed of its own, and all classes in turn."""
        found, size = [], 16
        for start in range(0, writing.CALIBRATION, size):
            noise = KeyedNoise(self.student.space.shape, seeds.CALIBRATION, start, start + size)
            labels = np.arange(start, start + size) % (self.student.space.num_classes or 1)
            found.append({name: labels if name == LABELS else noise.draw().numpy() for name in inputs})
        return found

    def calls(self) -> dict[int, dict[str, Any]]:
        """{steps: how the stock pipeline is called}, for the card."""
        return {steps: self.student.stock_call(steps) for steps in self.all_steps()}

    def all_steps(self) -> list[int]:
        """What the student's folder is called with."""
        return [steps for steps in (1, 2, 4) if steps <= self.student.most_steps]

    def facts(self, steps: Sequence[int]) -> dict[str, Any]:
        """The provenance of a file: see `fewstep.pipeline.export.provenance`."""
        manifest, classes = read_manifest(self.student_folder), self.student.space.num_classes
        made = manifest["inputs"]["weights"]
        facts = {
            "format": 1,
            "version": __version__,
            "run": self.context.config.name,
            "student": self.student_folder.name,
            "method": next(made[key]["method"]["name"] for key in made if key.startswith("student")),
            "steps": list(steps),
            "noise_levels": [self.student.plan(each).schedule for each in steps],
            "shape": list(self.student.space.shape),
            "inputs": [],
            "parameters": sum(parameter.numel() for parameter in self.student.parameters()),
            "output": "uint8 [B, H, W, C]" if self.pixels else "float32 [B, C, H, W] in [-1, 1]",
            "config_hash": manifest["config_hash"],
            "teacher_hash": made["teacher"],
            "student_hash": model_hash(self.student_folder),
            "protocol": self._protocol(),
        }
        return facts if classes is None else facts | {"num_classes": classes, "classes": manifest.get("classes")}

    def _protocol(self) -> str | None:
        """The hash of the protocol that the run was measured by; None before it was."""
        with suppress(UserError, LookupError):
            return read_json(self.run / "eval" / "benchmark.json", {})["protocol"]["hash"]
        return None


def _bytes(path: Path) -> int:
    """Of a file, or of all in a folder."""
    return path.stat().st_size if path.is_file() else sum(map(_bytes, path.iterdir()))


def summary(folder: Path) -> list[str]:
    """A line for each file of an export."""
    lines = []
    for each in read_json(folder / PARITY, {"files": [{}]})["files"]:
        if each["fault"]:
            lines.append(f"  warning: {each['file']} is not offered: {each['fault']}")
            continue
        parts = [
            f"  {each['file']}: {each['bytes'] / 1e6:.2f} MB",
            f"largest error {each['max_error']:.1e}, {each['equal_pixels']:.3%} of pixels equal",
            f"FD {each['fd']:.4g} (stock diffusers {each['stock_fd']:.4g})",
        ]
        for batch, rate in each["speed"].get("file", {}).items():
            parts.append(f"{rate / each['speed']['torch'][batch]:.2f} x torch at batch {batch}")
        lines.append(", ".join(parts))
    return lines
