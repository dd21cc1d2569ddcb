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
    from fewstep.pipeline import cold_start, loop
    from fewstep.pipeline.cli import main

    cold_start.cold_start = lambda text, device: {"import_s": 2.5, "load_s": 0.75, "first_image_s": 0.125}
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
    """Train the job of `small_training` in `folder`, from its newest checkpoint.

    Ends at once, like a process killed there, before filesystem step number `die_at` of the saves and log writes; the
    step's label is appended to the file `labels`.
    """
    from small_training import Training

    from fewstep.pipeline import checkpoint, log

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
    from fewstep.pipeline import loop

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

    from fewstep.pipeline import checkpoint

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
    from fewstep.pipeline import log

    class Full:
        def __init__(self, *given: Any, **options: Any) -> None:
            self.file, self.size = open(*given, **options), 0  # noqa: SIM115

        def write(self, text: str) -> None:
            self.size += len(text)
            _full() if self.size > 2000 else self.file.write(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    vars(log)["open"] = Full


def full_while_saving_a_model() -> None:
    """Fault: the disk is full where the student's model card is written, after its weights."""
    real = Path.write_text
    Path.write_text = lambda self, *given, **options: (_full if self.name == "README.md" else real)(
        *([] if self.name == "README.md" else [self]), *given, **options
    )


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
