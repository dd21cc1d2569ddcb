"""A generator in a .pt2 file (torch.export) as a Sampler: noise [B, C, H, W] in, images out.

Of several steps the first input is `noise` and the others are as large; of a class-conditional student the last one is
`labels`, by that name. Images are those of `onnx`.

torch.export.load unpickles parts of its file and compiles text of it, so that opening a file can run whatever code its
maker put there. Opened are files that a manifest of fewstep beside them vouches for, and others at the user's word.
"""

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from fewstep.errors import UserError, first_line, unreadable
from fewstep.eval.images import check_size, labels_for
from fewstep.eval.interfaces import Noise
from fewstep.files import sha256_file
from fewstep.pipeline.export.provenance import KEY, is_package, provenance_of, stated_classes, stated_steps
from fewstep.pipeline.sampling.grammar import in_steps
from fewstep.pipeline.sampling.onnx import are_noises, as_floats, checked_labels, known_classes
from fewstep.pipeline.stages.manifest import MANIFEST, read_manifest
from fewstep.students.graph import LABELS

INPUT = "noise"


class ProgramSampler:
    """A program of torch.export run by torch on `device`, whichever device it was exported on.

    torch reads a program onto the device of its export first: one from CUDA needs CUDA to be there. UserError: it is
    not to be trusted (see `check_trust`), cannot be read, has another interface, or fails on one or two images.
    """

    kind = "export"
    num_classes: int | None = None
    schedule: Sequence[float] = ()

    def __init__(self, name: str, label: str, path: Path, device: torch.device, *, trust: bool = False) -> None:
        check_trust(name, path, trust=trust)
        program, facts = _load(name, path)
        self.shape = _image_shape(name, program)
        check_size(name, self.shape)
        names = list(map(str, program.graph_signature.user_inputs))
        self.num_classes = known_classes(name, stated_classes(facts)) if LABELS in names else None
        self._noises = len(names) - (LABELS in names)
        self.nfe = stated_steps(facts) or self._noises
        self.name, self.label, self._device = name, f"{label}, {in_steps(self.nfe)}", device
        self.network_parameters = sum(weight.numel() for weight in program.state_dict.values())
        with unreadable(name, f"cannot be made into a module on {device}"):
            self._module = move_to_device_pass(program, device).module()
        self.networks = (self._module,)
        for batch in (1, 2):
            x = torch.zeros(batch, *self.shape, device=device)
            image = self._run([x] * self._noises, labels_for(self, 0, batch))
            if isinstance(image, Tensor) and image.dtype == torch.uint8:
                image = as_floats(image)
            if not isinstance(image, Tensor) or image.shape != x.shape or image.dtype != x.dtype:
                found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
                remedy = f"gives {found} for {tuple(x.shape)}; needed is float32, as large"
                raise UserError(name, None, remedy.replace("torch.", ""))

    def sample(self, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] float32 in [-1, 1] on the device.

        UserError: the program fails, as one does that was exported for fewer images at a time; labels that are not of
        its classes.
        """
        labels = checked_labels(self.name, labels, self.num_classes)
        return as_floats(self._run([noise.draw().to(self._device) for _ in range(self._noises)], labels))

    @torch.inference_mode()
    def _run(self, noises: list[Tensor], labels: Tensor | None) -> Tensor:
        batch = len(noises[0])
        try:
            return self._module(*noises, **({} if labels is None else {LABELS: labels.to(self._device)}))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an operator may raise anything
            remedy = "; eval.batch_size and eval.throughput_batch_sizes set smaller ones" if batch > 2 else ""
            raise UserError(self.name, None, f"fails on a batch of {batch} ({first_line(error)}){remedy}") from None


class PackageSampler(ProgramSampler):
    """A package of compiled code (AOTInductor), for the processor that it was compiled on; UserError: as above."""

    networks: Sequence[torch.nn.Module] = ()

    def __init__(self, name: str, label: str, path: Path, *, trust: bool = False) -> None:
        check_trust(name, path, trust=trust)
        facts = provenance_of(path)
        channels, height, width = facts["shape"]
        self.name, self.shape, self.nfe = name, (channels, height, width), facts["steps"][0]
        check_size(name, self.shape)
        self.label, self.device = f"{label}, {in_steps(self.nfe)}", torch.device("cpu")
        self._device, self.network_parameters = self.device, facts["parameters"]
        self.num_classes = known_classes(name, facts.get("num_classes")) if LABELS in facts["inputs"] else None
        self._noises = len(facts["inputs"]) - (LABELS in facts["inputs"])
        with unreadable(name, "cannot be loaded as compiled code on this machine"):
            self._module = torch._inductor.aoti_load_package(str(path))
        self._run([torch.zeros(2, *self.shape)] * self._noises, labels_for(self, 0, 2))


def open_program(name: str, label: str, path: Path, device: torch.device, *, trust: bool = False) -> ProgramSampler:
    """The sampler of a .pt2 of either kind."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(map(is_package, archive.namelist())):
            return PackageSampler(name, label, path, trust=trust)
    return ProgramSampler(name, label, path, device, trust=trust)


def check_trust(name: str, path: Path, *, trust: bool) -> None:
    """UserError where a file is not the one that the manifest beside it names, or has none and no `trust`."""
    written = None
    with suppress(UserError):  # no manifest, or none of fewstep: the file is somebody else's
        written = read_manifest(path.parent)["outputs"].get(path.name)
    if written is None and not trust:
        remedy = f"opening a .pt2 can run code, and no {MANIFEST} of fewstep beside it vouches for this one"
        raise UserError(name, None, f"{remedy}; --trust opens files of people you trust")
    if written is not None and sha256_file(path) != written["sha256"]:
        raise UserError(name, None, f"has changed since it was exported (its sha256 is not {MANIFEST}'s); export again")


def _load(name: str, path: Path) -> tuple[ExportedProgram, str]:
    """The program of a trusted file, and what it says of itself.

    torch.export only logs why it fails, with a traceback: here that is the error.
    """
    reasons: list[Any] = []

    def keep(record: LogRecord) -> bool:
        reasons.extend((record.exc_info or ())[1:2])
        return False

    log = getLogger("torch.export")
    log.addFilter(keep)
    try:
        files = {f"{KEY}.json": ""}
        return torch.export.load(path, extra_files=files), files[f"{KEY}.json"]
    except Exception as error:  # whatever the parts of torch's loader raise
        reason = first_line(next(iter(reasons), error))
        raise UserError(name, None, f"cannot be loaded as a torch.export program ({reason})") from None
    finally:
        log.removeFilter(keep)


def _image_shape(name: str, program: ExportedProgram) -> tuple[int, int, int]:
    """(C, H, W) of the program's noise."""
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    values = {node.name: node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    x, labels = values.get(INPUT), values.get(LABELS)
    names = [str(each) for each in inputs]
    labelled = names[-1:] == [LABELS]
    names = names[:-1] if labelled else names
    noises = are_noises(names) or names == [INPUT, *(f"later_{index}" for index in range(len(names) - 1))]
    alike = [getattr(values.get(name), "shape", None) == getattr(x, "shape", ()) for name in names]
    fits = noises and all(alike) and len(outputs) == 1
    fits &= not labelled or (isinstance(labels, Tensor) and (labels.dtype, labels.ndim) == (torch.int64, 1))
    if fits and isinstance(x, Tensor) and x.dtype == torch.float32 and x.ndim == 4:
        batch, *sides = x.shape
        if not isinstance(batch, int) and all(isinstance(side, int) for side in sides):
            return sides[0], sides[1], sides[2]
    found = ", ".join(f"{each} {_described(values.get(str(each)))}" for each in inputs)
    remedy = f"has the inputs {found or 'none'} and {len(outputs)} outputs; needed is one float32 input {INPUT!r}"
    raise UserError(name, None, f"{remedy} [B, C, H, W] with a free B, and one output")


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return "(no tensor)"
    sizes = ", ".join(str(size) if isinstance(size, int) else "free" for size in value.shape)
    return f"{value.dtype} [{sizes}]".removeprefix("torch.")
