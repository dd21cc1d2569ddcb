"""Tensors out of a pickle into a safetensors file, in a process of its own, in which nothing else is at stake.

python -m fewstep.pipeline.stages.unpickle PICKLE TARGET prints one line of JSON: {"tensors": how many}, or
{"fault": why not}. The pickle is read with torch's weights_only, which runs no code; only named, dense tensors are
taken.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.errors import UserError, unreadable

if TYPE_CHECKING:
    from torch import Tensor

SECONDS = 1800.0  # a file that takes longer to read is not waited for
MOST_RATIO = 2  # bytes of the tensors to those of the file: tensors may share memory in it, but not without end
_WHERE = "MODEL"


def unpickle(source: Path, target: Path, seconds: float = SECONDS) -> int:
    """Write the tensors of a pickle to `target` (.safetensors) as they are, contiguous; how many there are.

    The file holds {name: tensor}, or one dictionary of that form under a single name, such as "state_dict". UserError:
    it holds anything else, is damaged, or takes longer than `seconds`. The process does not outlive the call, whatever
    ends it.
    """
    command = [sys.executable, "-P", "-m", __spec__.name, str(source), str(target)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise UserError(_WHERE, str(source), f"takes longer to read than {seconds:g} s") from None
        finally:
            process.kill()
    if process.returncode != 0:
        why = next(iter(err.strip().splitlines()[-1:]), f"exit code {process.returncode}; is there memory for it?")
        raise UserError(_WHERE, str(source), f"cannot be read: the process that reads it failed ({why[:200]})")
    found = json.loads(out.splitlines()[-1])
    if "fault" in found:
        raise UserError(_WHERE, None, found["fault"])
    return found["tensors"]


def named_tensors(value: object, length: int) -> "dict[str, Tensor]":
    """{name: tensor} of what was read from a file of `length` bytes, each with memory of its own.

    ValueError: it is something else, or the tensors together are longer than `MOST_RATIO` times the file.
    """
    import torch

    if isinstance(value, Mapping) and len(value) == 1 and isinstance(inner := next(iter(value.values())), Mapping):
        value = inner
    if not isinstance(value, Mapping):
        raise ValueError(f"it holds {type(value).__name__}, not named tensors")
    if not value:
        raise ValueError("it holds no tensors")
    for name, tensor in value.items():
        if not isinstance(name, str):
            raise ValueError(f"it names a tensor {name!r}, which is no text")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(f"under {name!r} it holds {type(tensor).__name__}, not a tensor")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_neg():
            raise ValueError(f"its tensor {name!r} is sparse, quantized, complex or a view that is computed")
    total = sum(tensor.numel() * tensor.element_size() for tensor in value.values())
    if total > MOST_RATIO * length:
        raise ValueError(f"its tensors share memory: written out they are {total:,} bytes, the file is {length:,}")
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in value.items()}


def write_tensors(source: Path, target: Path) -> int:
    """What the process does: see `unpickle`."""
    from safetensors.torch import save_file

    from fewstep.eval.array_file import read_torch

    value = read_torch(_WHERE, source, "named tensors")
    with unreadable(_WHERE, "cannot be written as safetensors", str(source)):
        tensors = named_tensors(value, source.stat().st_size)
        save_file(tensors, target, metadata={"format": "pt"})
    return len(tensors)


def main(arguments: Sequence[str]) -> None:
    """Write the file and say how it went."""
    source, target = map(Path, arguments)
    try:
        print(json.dumps({"tensors": write_tensors(source, target)}))
    except UserError as error:
        print(json.dumps({"fault": str(error).removeprefix(f"{_WHERE}: ")}))


if __name__ == "__main__":
    main(sys.argv[1:])
