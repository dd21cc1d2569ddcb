"""What the forked processes do: commands and small trainings, with faults injected."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def command(argv: Sequence[str], saved: str | None = None, fault: str | None = None) -> int:
    """A command line under a fault, a function of this file, or None.

    `saved` names a file to which the manifest of each checkpoint goes as a line.
    """
    from fewstep.pipeline.cli.main import main
    from fewstep.pipeline.sampling import cold_start
    from fewstep.pipeline.training import loop

    cold_start.cold_start = lambda text, device, *, trust: {"import_s": 2.5, "load_s": 0.75, "first_image_s": 0.125}
    if saved is not None:
        save = loop.save_checkpoint

        def recorded(folder: Path, *given: Any) -> Path:
            path = save(folder, *given)
            manifest = json.loads((path / "MANIFEST.json").read_text())
            with open(saved, "a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": folder.name} | manifest) + "\n")
            return path

        loop.save_checkpoint = recorded
    if fault is not None:
        globals()[fault]()
    return main(argv)


def training(folder: str, die_at: int | None = None, labels: str | None = None) -> None:
    """Train the job of `small_training` in `folder`, from its newest checkpoint; swept first, as every run begins.

    Ends at once, like a process killed there, before filesystem step number `die_at` of the saves and log writes; the
    step's label is appended to the file `labels`.
    """
    from fewstep.files import sweep
    from fewstep.pipeline.training import checkpoint, log
    from small_training import Training

    sweep(Path(folder))
    log._has_tensorboard = lambda: False
    calls = []

    def reached(label: str, half: Callable[[], None] = lambda: None) -> None:
        if labels is not None:
            with open(labels, "a", encoding="utf-8") as file:
                file.write(label + "\n")
        if len(calls) == die_at:
            half()
            os._exit(9)
        calls.append(label)

    def save_file(tensors: Any, path: Path, real: Callable[..., None] = checkpoint.save_file) -> None:
        def half() -> None:
            real(tensors, path)
            os.truncate(path, path.stat().st_size // 2)

        reached(f"create {path.name}")
        reached(f"write half of {path.name}", half)
        real(tensors, path)

    checkpoint.save_file = save_file
    for name in ("mkdir", "rename", "replace", "fsync", "chmod", "unlink", "rmdir"):
        setattr(os, name, _labelled(name, getattr(os, name), reached))
    Training(Path(folder)).run()


def _labelled(name: str, real: Callable[..., Any], reached: Callable[[str], None]) -> Callable[..., Any]:
    def call(place: Any, *given: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
        reached(f"{name} {os.path.basename(path)}")
        return real(place, *given, **options)

    return call


def die_after_three_saves() -> None:
    """Fault: the process ends when the third checkpoint is whole."""
    from fewstep.pipeline.training import loop

    save, calls = loop.save_checkpoint, []

    def dying(*given: Any) -> Path:
        path = save(*given)
        calls.append(path)
        if len(calls) == 3:
            os._exit(9)
        return path

    loop.save_checkpoint = dying


def _full(*given: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_while_saving_a_checkpoint() -> None:
    """Fault: the disk is full at the second checkpoint, as safetensors tells it."""
    from safetensors import SafetensorError

    from fewstep.pipeline.training import checkpoint

    save, calls = checkpoint.save_file, []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 5:
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path)

    checkpoint.save_file = full


def full_while_flushing() -> None:
    """Fault: the disk is full where a checkpoint's files are flushed."""
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        _full() if len(calls) == 20 else real(descriptor)

    os.fsync = full


def full_while_logging() -> None:
    """Fault: the log's file takes 2,000 bytes and no more."""
    from fewstep.pipeline.training import log

    class Full:
        def __init__(self, *given: Any, **options: Any) -> None:
            self.file, self.size = open(*given, **options), 0  # noqa: SIM115

        def write(self, text: str) -> None:
            self.size += len(text)
            _full() if self.size > 2000 else self.file.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    log.open = Full  # type: ignore[attr-defined]


def full_while_saving_a_model() -> None:
    """Fault: the disk is full where the student's model card is written, after its weights."""
    from fewstep.pipeline.stages import student as make_student

    make_student.model_card = _full


def full_while_taking_scratch_space() -> None:
    """Fault: the disk has no room for a seed block's images."""
    os.posix_fallocate = _full


def full_while_copying_results() -> None:
    """Fault: the disk is full where the evaluation's results are moved into their folder."""
    import shutil

    shutil.copyfile = _full


def full_while_writing_images() -> None:
    """Fault: the disk is full at the first image."""
    from PIL import Image

    Image.Image.save = _full


def limited_file_size() -> None:
    """Fault: no file may be larger than 100 kB."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def nan_from_the_student() -> None:
    """Fault: what the student gives in step 7 of its training is NaN."""
    from fewstep.pipeline.training import loop
    from fewstep.students.consistency import ConsistencyModel
    from fewstep.teachers.preconditioned import Preconditioned

    step, denoise, now = loop._Training.step, Preconditioned.forward, [0]

    def noted(self: Any, progress: Any) -> Any:
        now[0] = progress.step
        return step(self, progress)

    def poisoned(self: Any, *given: Any) -> Any:
        found = denoise(self, *given)
        if now[0] == 7 and type(self) is ConsistencyModel:
            found = found + float("nan")
        return found

    loop._Training.step = noted
    setattr(Preconditioned, "forward", poisoned)  # noqa: B010 - of another signature


def nan_in_the_teacher_s_embedding() -> None:
    """Fault: the embedding that the student's is fitted to is NaN once."""
    from fewstep.students import convert

    embed, calls = convert._embed, []

    def poisoned(unet: Any, timestep: Any) -> Any:
        calls.append(unet)
        return embed(unet, timestep) * (float("nan") if len(calls) == 5 else 1.0)

    convert._embed = poisoned


def _clock(jump: Callable[[float, int], float]) -> None:
    """Every clock tells `jump(the time, how often it was asked)`."""
    import itertools
    import time

    for name in ("time", "monotonic"):
        real, count = getattr(time, name), itertools.count()
        setattr(time, name, lambda real=real, count=count: jump(real(), next(count)))


def clock_backwards() -> None:
    """Fault: each time that a clock is asked it has gone back by a minute."""
    _clock(lambda now, asked: now - 60 * asked)


def clock_forwards() -> None:
    """Fault: each time that a clock is asked a year has passed."""
    _clock(lambda now, asked: now + 365 * 86400 * (asked % 50))


def clock_stopped() -> None:
    """Fault: the clocks stand still."""
    _clock(lambda now, asked: 1e9)


def die_in_the_middle_of_a_write() -> None:
    """Fault: kill -9 before config.yaml is renamed into place."""
    import signal

    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == "config.yaml":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killed
