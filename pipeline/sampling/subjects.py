"""What `fewstep benchmark SUBJECT ...` measures: diffusers folders and hub ids, exported generators, images.

The command's help lists the forms. A teacher's folder is a DDPMPipeline's, or one with a scaling of its own.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fewstep.errors import UserError, first_line, printable, unreadable
from fewstep.eval.array_file import array_sizes, read_arrays
from fewstep.eval.benchmark import Subject
from fewstep.eval.images import StoredImages, pixels_sha256
from fewstep.files import read_json, sha256_file, sha256_json
from fewstep.pipeline.data.decode import Decoder, pillow_warnings
from fewstep.pipeline.data.walk import walk
from fewstep.pipeline.sampling.grammar import parse
from fewstep.pipeline.sampling.models import ModelSampler, prepare_to_sample, student_sampler, teacher_sampler
from fewstep.pipeline.sampling.onnx import OnnxSampler, session_of
from fewstep.pipeline.sampling.pt2 import open_program
from fewstep.pipeline.sampling.stock import SCHEDULERS, PipelineSampler, check_index
from fewstep.pipeline.stages.manifest import folder_hash
from fewstep.progress import say
from fewstep.students.load import is_student, load_student
from fewstep.teachers.folder import OWN, model_folder
from fewstep.teachers.guided import Guided
from fewstep.teachers.load import load_teacher
from fewstep.teachers.solvers import SOLVERS, levels
from fewstep.teachers.stock import quiet

FORMS = "FOLDER@SOLVER:STEPS, FOLDER@STEPS, an .onnx, a .pt2, an image folder or an .npz"
_TEACHERS = ("DDPMPipeline", "DDIMPipeline", "ScoreSdeVePipeline")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_subject(text: str, device: torch.device, *, trust: bool = False) -> tuple[Subject, Callable[[], str]]:
    """What a command line's SUBJECT stands for, and what makes a hash, reading every file of it.

    `trust`: also a .pt2 that others made, which can run any code. UserError: no such thing, or one that cannot be read
    or measured.
    """
    place, at, spec = text.rpartition("@")
    if not at or Path(text).expanduser().exists():
        place, spec = text, None
    path = Path(place).expanduser()
    is_model = any((path / name).is_file() for name in ("model_index.json", OWN, "unet/config.json")) or _is_flat(path)
    if (path.is_dir() and not is_model) or (path.is_file() and path.suffix in (".npz", ".onnx", ".pt2")):
        if student := next(path.glob("students/[!.]*/model_index.json"), None):
            remedy = f"is a run: give {path}/teacher@ddim:50, {student.parent}@1 or others of its models"
            raise UserError(path, None, remedy)
        exported = path.is_file() and path.suffix != ".npz"
        if spec is not None:
            why = (
                "an exported student makes the steps that it was exported for"
                if exported
                else "images that are there already have no steps"
            )
            raise UserError(text, spec, f"{why}: leave out what follows @")
        if not exported:
            images = _read_folder(path) if path.is_dir() else _read_npz(path)
            return StoredImages(text, _label(path), images), partial(pixels_sha256, images)
        if path.suffix == ".onnx":
            graph = OnnxSampler(text, _label(path), path, *session_of(path))
            return graph, graph.identity
        return open_program(text, _label(path), path, device, trust=trust), partial(sha256_file, path)
    if not path.is_dir():
        path = fetch(text, place)
    name = parse(f"x@{spec}")
    if spec is not None and (name is None or name.solver not in (None, *SCHEDULERS)):
        solvers = ", ".join(SCHEDULERS)
        raise UserError(text, spec, f"what follows @ must be STEPS or SOLVER:STEPS (SOLVER: {solvers})")
    solver, steps = (name.solver, name.steps) if name else (None, None)
    guided = [] if (guidance := _run_guidance(path)) == 1 else [guidance]
    sampler = _sampler(text, path, solver, steps, device)
    return sampler, lambda: sha256_json([folder_hash(path), solver, steps, *guided])


def _run_guidance(path: Path) -> float:
    """The guidance under which a run follows the teacher in its folder; 1, none, of a folder that is no run's."""
    if path.name != "teacher" or not (path.parent / "config.json").is_file():
        return 1.0
    return float(read_json(path.parent / "config.json", {}).get("teacher", {}).get("guidance", 1.0))


def _has_classes(config: Mapping[str, Any]) -> bool:
    return config.get("num_class_embeds") is not None


def _is_flat(path: Path) -> bool:
    """Whether a folder is that of a network alone, with its configuration at the root; a run has one of its own."""
    config = path / "config.json"
    return config.is_file() and not (path / "teacher").is_dir() and "_class_name" in read_json(config, {})


def _label(path: Path) -> str:
    """The last two parts of a path, such as digits/teacher; of a run's student, digits/NAME."""
    *_, run, folder, name = ("", *path.absolute().parts)
    return f"{run}/{name}" if folder == "students" else f"{folder}/{name}"


def fetch(text: str, place: str) -> Path:
    """A hub id's files, as the folder they are cached in. UserError, about `text`: it is none, or cannot be had."""
    if not HUB_ID.fullmatch(place):
        raise UserError(text, None, f"no such folder or file; give {FORMS}, or a hub id with them")
    try:
        with quiet():
            return Path(str(DiffusionPipeline.download(place, use_safetensors=True)))
    except (OSError, ValueError) as error:
        raise UserError(text, None, f"no such folder, and not to be had from the hub ({first_line(error)})") from None


def _sampler(
    text: str, path: Path, solver: str | None, steps: int | None, device: torch.device
) -> ModelSampler | PipelineSampler:
    """A folder's model under our own samplers where it is a run's teacher or student, else as its users call it."""
    label, stock = _label(path), (path / "model_index.json").is_file()
    model = model_folder(path)
    kind = model.index.get("_class_name") if stock else "DDPMPipeline"
    config = model.unet
    ours: ModelSampler | None = None
    if not stock and solver not in SOLVERS:
        raise UserError(text, None, f"has no pipeline of its own: name a solver, @SOLVER:N ({', '.join(SOLVERS)})")
    if config.get("_class_name") != "UNet2DModel":
        pass
    elif kind in _TEACHERS and solver in SOLVERS and steps and (kind == "DDPMPipeline" or _has_classes(config)):
        teacher = load_teacher(path, device)
        if steps > len(levels(teacher.space)):
            raise UserError(text, steps, "are more steps than its schedule has")
        guidance = _run_guidance(path)
        ours = teacher_sampler(teacher if guidance == 1 else Guided(teacher, guidance), solver, steps)
    elif kind in _TEACHERS and _has_classes(config):
        remedy = f"has classes, which {kind} takes none of: name a solver, @SOLVER:N ({', '.join(SOLVERS)})"
        raise UserError(text, None, remedy)
    elif solver is None and stock and is_student(path):
        ours = student_sampler(load_student(path, device), steps or 1)
    if ours is not None:
        prepare_to_sample(ours.networks[0])
        ours.name, ours.label = text, f"{label}, {ours.label.partition(', ')[2]}"
        return ours
    check_index(path)
    with unreadable(text, "cannot be loaded and called as a diffusers pipeline"), quiet():
        pipeline: Any = DiffusionPipeline.from_pretrained(path, use_safetensors=True).to(device)
        return PipelineSampler(text, label, pipeline, steps, solver)


def _read_folder(path: Path) -> Tensor:
    """Read all images in a folder and its sub-folders, in the order of their paths, uint8 [N, C, H, W].

    They are those that a training on this folder reads, of any split, but for grid.png, the overview that
    `fewstep sample` writes beside its images. What is left out is said.
    """
    walked = walk(path)
    names = [name for name in walked.images() if name != "grid.png"]
    if not names:
        raise UserError(path, None, f"holds neither a model_index.json nor images; give {FORMS}")
    for each in walked.left_out({*names, "grid.png"}):
        say(f"{path}: left out: {printable(each)}")
    decoder, arrays = Decoder(image_size=None, channels=None), []
    with pillow_warnings():
        for name in names:
            try:
                arrays.append(decoder.decode(str(path / name), path / name))
            except UserError as error:
                if not error.where.startswith("data."):
                    raise
                fault = error.remedy.partition("; set it")[0]
                raise UserError(path, None, f"{fault}; resize, crop or convert the images") from None
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _read_npz(path: Path) -> Tensor:
    """uint8 [N, C, H, W] of `arr_0`, or of the only array, which is uint8 [N, H, W, C] with 1 or 3 channels."""
    names = list(array_sizes(path, path))
    name = "arr_0" if "arr_0" in names or len(names) != 1 else names[0]
    if name not in names:
        raise UserError(path, None, f"holds {len(names)} arrays, none of them arr_0: which are the images?")
    (images,) = read_arrays(path, path, [name])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        remedy = f"holds {images.dtype} {images.shape}; needed is uint8 [N, H, W, C] with 1 or 3 channels"
        raise UserError(path, None, remedy)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
