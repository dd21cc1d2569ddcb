"""A torch.export program (.pt2) from a file that anybody may have made, read without running anything of it.

`torch.export.load` trusts its file (torch 2.15, `export/pt2_archive/_package.py` and `_export/serde/serialize.py`): it
unpickles sample inputs (with `weights_only=False` where the safe way fails), weights and constants marked `use_pickle`
and custom objects, loads compiled libraries, evaluates symbolic expressions with sympy.sympify and guards with exec,
imports the modules that input specifications name, calls whatever attribute of torch an operator names, and writes node
names into the code that it compiles. Here the archive is read with zipfile and json alone, everything is held against
lists of what may stand in it, and torch gets a new archive, in memory, made of what was checked: no sample inputs, no
guards, no metadata, the input specification written anew. What remains are ATen's operators on tensors; how their
kernels take numbers that fit nothing is torch's.
"""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any, NoReturn
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch._ops import OpOverloadPacket
from torch.export import ExportedProgram

from fewstep.errors import UserError, first_line

INPUT = "noise"
MOST_JSON = 256 * 2**20  # bytes of a JSON part; the weights are as long as the file, since compressed ones are refused
_ROOT, _MODEL = "program", "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PAYLOAD = re.compile(r"data/(?:weights/weight|constants/tensor)_\d{1,7}", re.ASCII)
_COPIED = ("archive_format", "archive_version", "byteorder", ".data/version")
_IGNORED = re.compile(r"data/sample_inputs/model\.pt|extra/.*|version|\.data/serialization_id", re.DOTALL)

_SYMBOL = r"(?:s|u|zf|zuf)\d{1,6}"
_EXPRESSION = re.compile(
    rf"(?=.{{1,2000}}\Z)(?:Symbol\('{_SYMBOL}'(?:, (?:positive|nonnegative|integer|real|finite|nonzero)=True)*\)"
    rf"|\b{_SYMBOL}\b"
    r"|\b(?:Integer|Mul|Add|FloorDiv|CeilDiv|CleanDiv|Mod|PythonMod|Max|Min)(?=\()|\b\d{1,18}\b"
    r"|[<>]=?|[-+*/](?!\*)|[(), ])+",
    re.ASCII,
)
_NAME = re.compile(r"(?:[A-Za-z_]\w{0,500})?", re.ASCII)
_PLACE = re.compile(r"[\w.]{0,1000}", re.ASCII)
STRINGS = {  # the keys under which a program has text, and the text that may stand there
    "name": _NAME,
    "as_name": _NAME,
    "parameter_name": _PLACE,
    "buffer_name": _PLACE,
    "tensor_constant_name": _PLACE,
    "path_name": re.compile(r"(?:weight|tensor)_\d{1,7}", re.ASCII),
    "expr_str": _EXPRESSION,
    "as_string": re.compile(
        r"none|tanh|floor|trunc|constant|reflect|replicate|circular|ij|xy|cpu|cuda|[A-Za-z, ]+->[A-Za-z ]*"
    ),
    "as_float": re.compile(r"-?Infinity|NaN"),
    "verifiers": re.compile(r"[A-Z]{0,20}"),
}
_OBJECTS = {"custom_obj", "as_custom_obj", "class_fqn", "as_operator"}
_PYTHON = re.compile(
    r"_operator\.(?:eq|ne|[lg][et]|neg|pos|mul|add|sub|floordiv|mod|truediv|and_|or_|getitem)"
    r"|math\.trunc|torch\.sym_(?:not|int|float|ite|max|min|sqrt)"
    r"|torch\.ops\.higher_order\.wrap_with_(?:set_grad_enabled|autocast)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.(_?[a-z]\w*)\.([A-Za-z]\w*)", re.ASCII)
_DTYPES = {5: "int64", 6: "float16", 7: "float32", 8: "float64", 13: "bfloat16"}  # torch's ScalarType
Json = Any  # what json.loads returns
_LEAF: dict[str, Json] = {"type": None, "context": None, "children_spec": []}


def read_program(name: str, path: Path, device: torch.device) -> tuple[ExportedProgram, tuple[int, int, int]]:
    """The program of a .pt2 file with its tensors on `device`, and the shape (C, H, W) of its images.

    UserError: no such archive, or one with a part that could run code when it is read; another interface than one input
    `noise` float32 [B, C, H, W] with a free B and one output; operators that are not ATen's.
    """
    try:
        with ZipFile(path) as archive:
            archive_bytes, shape = _Archive(name, archive, device).rewritten()
    except (BadZipFile, OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(name, None, f"cannot be read as a torch.export program ({first_line(error)})") from None
    try:
        with _silent():
            return torch.export.load(io.BytesIO(archive_bytes)), shape
    except Exception as error:  # of torch's loader, which lets through whatever its parts raise
        raise UserError(name, None, f"cannot be loaded as a torch.export program ({first_line(error)})") from None


class _Archive:
    """A .pt2 archive that is not trusted; `name` is the subject that errors name."""

    def __init__(self, name: str, archive: ZipFile, device: torch.device) -> None:
        self.name, self._archive = name, archive
        self._device = {"type": device.type, "index": device.index}
        self._members: dict[str, str] = {}
        for info in archive.infolist():
            part = info.filename.partition("/")[2]
            if part in self._members:
                raise BadZipFile(f"{part} stands in it twice")
            if info.compress_type != ZIP_STORED or info.flag_bits & 1:
                raise BadZipFile(f"{part} is compressed or encrypted, which torch.export.save does not do")
            self._members[part] = info.filename

    def rewritten(self) -> tuple[bytes, tuple[int, int, int]]:
        """A new archive of the checked parts, and (C, H, W)."""
        self._check_parts()
        program, shape = self._program()
        configs = {part: self._payloads(part) for part in _CONFIGS}
        buffer = io.BytesIO()
        with ZipFile(buffer, "w", ZIP_STORED) as new:
            for part, value in {_MODEL: program, **configs}.items():
                new.writestr(f"{_ROOT}/{part}", json.dumps(value))
            new.writestr(f"{_ROOT}/data/sample_inputs/model.pt", b"")
            for part in self._members:
                if part in _COPIED or _PAYLOAD.fullmatch(part):
                    new.writestr(f"{_ROOT}/{part}", self._read(part))
        return buffer.getvalue(), shape

    def _check_parts(self) -> None:
        """Every part of the archive is one that we check or one that we leave out."""
        if _MODEL not in self._members:
            raise BadZipFile(f"no {_MODEL}; torch.export.save writes it from torch 2.8 on")
        for part in self._members:
            if part.startswith("data/aotinductor/") or part.endswith((".so", ".dll", ".dylib")):
                self._refuse(f"compiled code ({part})")
            if re.fullmatch(r"data/(?:weights|constants)/(?:model\.pt|(?:custom|opaque)_obj.*)", part):
                self._refuse(f"a pickle ({part})")
            if part not in (_MODEL, *_CONFIGS, *_COPIED) and not (_PAYLOAD.fullmatch(part) or _IGNORED.fullmatch(part)):
                self._refuse(f"{part[:80]!r}, which torch.export.save does not write")

    def _program(self) -> tuple[dict[str, Json], tuple[int, int, int]]:
        """The checked program, without guards and metadata and with one input and one output, and (C, H, W)."""
        found = self._json(_MODEL)
        program = {
            part: self._checked(found[part], part)
            for part in ("opset_version", "range_constraints", "schema_version", "verifiers")
        }
        graph, signature = (self._checked(found["graph_module"][part], part) for part in ("graph", "signature"))
        shape = self._interface(graph, signature)
        children = [{"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF]}]
        children += [{"type": "builtins.dict", "context": "[]", "children_spec": []}]
        call = {"type": "builtins.tuple", "context": "null", "children_spec": children}
        root = {"inputs": [], "outputs": [], "in_spec": json.dumps([1, call]), "out_spec": json.dumps([1, _LEAF])}
        calls = [{"fqn": "", "signature": root | {"forward_arg_names": [INPUT]}}]
        return program | {"graph_module": {"graph": graph, "signature": signature, "module_call_graph": calls}}, shape

    def _interface(self, graph: Json, signature: Json) -> tuple[int, int, int]:
        """(C, H, W) of the one input; UserError where there are others."""
        names = [
            _only(_only(spec["user_input"]["arg"])) if "user_input" in spec else str(_only(spec)["name"])
            for spec in signature["input_specs"]
            if {"user_input", "constant_input"} & spec.keys()
        ]
        tensors = [graph["tensor_values"].get(name) for name in names]
        outputs = sum("user_output" in spec for spec in signature["output_specs"])
        if (
            names == [INPUT]
            and outputs == 1
            and tensors[0] is not None
            and _DTYPES.get(tensors[0]["dtype"]) == "float32"
        ):
            batch, *sides = [_only(size) for size in tensors[0]["sizes"]]
            if isinstance(batch, dict) and len(sides) == 3 and all(isinstance(side, int) for side in sides):
                return sides[0], sides[1], sides[2]
        found = ", ".join(f"{name} {_described(tensor)}" for name, tensor in zip(names, tensors, strict=True))
        remedy = f"has the inputs {found or 'none'} and {outputs} outputs; needed is one float32 input {INPUT!r}"
        raise UserError(self.name, None, f"{remedy} [B, C, H, W] with a free B, and one output")

    def _payloads(self, part: str) -> dict[str, Json]:
        """A checked list of weights or constants, none of them pickled."""
        found = self._json(part)["config"]
        for name, payload in found.items():
            if payload["use_pickle"] is not False or payload["tensor_meta"] is None:
                self._refuse(f"a pickle ({name[:80]!r} in {part})")
        return {"config": self._checked(found, "config")}

    def _checked(self, value: Json, key: str) -> Json:
        """A copy of JSON in which every key, text and operator is one that may stand there, on our device."""
        if isinstance(value, dict):
            if value.keys() == {"type", "index"}:
                return self._device
            for each in value:
                if each in _OBJECTS:
                    self._refuse(f"what is no tensor ({each})")
                if not _PLACE.fullmatch(each):
                    self._refuse(f"the name {each[:80]!r}")
            return {each: {} if each == "metadata" else self._checked(item, each) for each, item in value.items()}
        if isinstance(value, list):
            return [self._checked(item, key) for item in value]
        if isinstance(value, str) and key == "target":
            self._check_operator(value)
        elif isinstance(value, str) and (key not in STRINGS or not STRINGS[key].fullmatch(value)):
            self._refuse(f"the text {value[:80]!r} as {key}")
        return value

    def _check_operator(self, target: str) -> None:
        """One of ATen's operators that takes no name of a file, arithmetic of sizes, or a region without gradients."""
        if _PYTHON.fullmatch(target):
            return
        found = _ATEN.fullmatch(target)
        packet = found and getattr(torch.ops.aten, found[1], None)
        if not found or not isinstance(packet, OpOverloadPacket) or found[2] not in packet.overloads():
            self._refuse(f"the operator {target[:80]!r}")
        elif any("file" in argument.name for argument in getattr(packet, found[2])._schema.arguments):
            self._refuse(f"the operator {target}, which opens files")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(self.name, None, f"holds {what}: not read, since it could run code; export plain tensors")

    def _json(self, part: str) -> Json:
        return json.loads(self._read(part, MOST_JSON))

    def _read(self, part: str, most: int | None = None) -> bytes:
        member = self._members[part]
        if most is not None and self._archive.getinfo(member).file_size > most:
            raise BadZipFile(f"{part} is longer than {most:,} bytes")
        return self._archive.read(member)


def _only(value: dict[str, Json]) -> Json:
    """The value of a dictionary's only key."""
    (item,) = value.values()
    return item


def _described(tensor: Json) -> str:
    if tensor is None:
        return "(no tensor)"
    sizes = ", ".join(str(size) if isinstance(size := _only(each), int) else "free" for each in tensor["sizes"])
    return f"{_DTYPES.get(tensor['dtype'], 'of another type')} [{sizes}]"


@contextmanager
def _silent() -> Iterator[None]:
    """torch.export without its log, which quotes a failed file's traceback."""
    logger = getLogger("torch.export")
    level = logger.level
    logger.setLevel(CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
