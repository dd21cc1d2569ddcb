"""Arrays and tensors from files that anybody may have made: an .npz, and what torch.save wrote.

Nothing is run and nothing is allocated before a file's own length vouches for it: an array is as long as its header
says, an archive does not unpack to more than a hundred times its length, a tensor is no larger than its file.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fewstep.errors import UserError, unreadable

MOST_RATIO = 100  # unpacked to packed; images of noise give 1, of flat areas some ten
_ALWAYS_FINE = 2**24  # bytes unpacked
_HEADERS: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_PICKLED_BY_NUMPY = [np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]


def array_sizes(where: object, path: Path) -> dict[str, int]:
    """{name: bytes, unpacked, with a header} of the arrays in an .npz; UserError where it is none."""
    with _archive(where, path) as archive:
        infos = archive.infolist()
    return {info.filename.removesuffix(".npy"): info.file_size for info in infos if info.filename.endswith(".npy")}


def read_arrays(where: object, path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """The arrays of those names in an .npz of plain numbers. UserError: damaged, pickled, or larger than it can be."""
    with _archive(where, path) as archive:
        return [_array(archive, f"{name}.npy", MOST_RATIO * path.stat().st_size) for name in names]


@contextmanager
def _archive(where: object, path: Path) -> Iterator[ZipFile]:
    named = None if where == path else str(path)
    with unreadable(where, "cannot be read as an .npz of arrays", named), ZipFile(path) as archive:
        yield archive


def _array(archive: ZipFile, member: str, most: int) -> NDArray[Any]:
    size = archive.getinfo(member).file_size
    if size > max(most, _ALWAYS_FINE):
        raise ValueError(f"{member} unpacks to {size:,} bytes, {MOST_RATIO} times the file and more")
    with archive.open(member) as file:
        version = npy.read_magic(cast(BinaryIO, file))
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the .npy form is not read")
        shape, order, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member} holds pickled objects, which are not read")
        length = math.prod(shape) * dtype.itemsize
        if length + file.tell() != size:
            raise ValueError(f"{member} is {shape} by its header and has another length")
        data = file.read(length + 1)
    if len(data) != length:
        raise ValueError(f"{member} is cut short")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order else "C").copy()


def read_torch(where: object, path: Path, what: str) -> object:
    """What torch.save wrote, with weights_only: tensors, numpy arrays, numbers, text and containers of them.

    The only place that opens a pickle: torch's own reader for it, which runs no code. UserError naming `what` was
    wanted: it holds something else, is damaged, packed, or has a tensor that is larger than the file.
    """
    from numpy._core.multiarray import _reconstruct  # what a pickled array calls; not public, and harmless

    length = path.stat().st_size
    with unreadable(where, f"cannot be read as {what}", str(path)):
        if is_zipfile(path):
            with ZipFile(path) as archive:
                if sum(info.file_size for info in archive.infolist()) > length:
                    raise ValueError("it is packed, which torch.save does not do")
        with torch.serialization.safe_globals([_reconstruct, *_PICKLED_BY_NUMPY]):
            value = _load(path)
        for size in _sizes(value):
            if size > length:
                raise ValueError(f"it holds a tensor of {size:,} bytes, more than the file")
    return value


def _load(path: Path) -> object:
    """What torch's reader makes of a file; ValueError names what stands in it that is no tensor."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's own, and torch's, which advises to read the file without weights_only
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(f"it names {named[1]}, which is no tensor's and is not run") from None
        raise


def _sizes(value: object, depth: int = 0) -> Iterator[int]:
    """Bytes of each tensor and array in what was read."""
    if depth > 10:
        raise ValueError("it is nested more than 10 deep")
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError("it holds a sparse or quantized tensor, or one without values")
        yield value.numel() * value.element_size()
    elif isinstance(value, np.ndarray):
        yield value.nbytes
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _sizes(item, depth + 1)


def read_tensors(where: object, path: Path, what: str) -> dict[str, Tensor]:
    """A dictionary of named tensors that torch.save wrote; UserError as `read_torch`, or for what is none."""
    tensors = read_torch(where, path, what)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(where, str(path), "does not hold a dictionary of named tensors")
    return tensors
