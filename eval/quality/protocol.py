"""The protocol: all that must be equal before two numbers may stand in one table."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UserError
from fewstep.files import flatten, sha256_json


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How quality is measured.

    reference: {"dataset", "split", "count", "sha256" of the uint8 pixels}
    extractor: {"name", "sha256" of its weights, "resize"}
    images: generated images in each seed block
    encoding: how floats become uint8
    """

    reference: dict[str, Any]
    extractor: dict[str, Any]
    images: int
    encoding: str

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON of the four fields."""
        return sha256_json(dataclasses.asdict(self))

    def to_json(self) -> dict[str, Any]:
        """The four fields and their hash."""
        return {**dataclasses.asdict(self), "hash": self.hash}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Protocol":
        """Inverse of to_json; UserError when the fields do not give the stored hash."""
        fields = {key: entry for key, entry in value.items() if key != "hash"}
        if unknown := fields.keys() - {field.name for field in dataclasses.fields(cls)}:
            raise UserError("protocol", sorted(unknown)[0], "is no field of a protocol of this version: measure again")
        protocol = cls(**fields)
        if value["hash"] != protocol.hash:
            remedy = "the protocol was changed after it was stored; measure again"
            raise UserError("protocol.hash", value["hash"], remedy)
        return protocol


def check_same(a: Protocol, b: Protocol) -> None:
    """UserError naming the first field in which two protocols differ, with both values."""
    left, right = flatten(dataclasses.asdict(a)), flatten(dataclasses.asdict(b))
    for key in left | right:
        if left.get(key) != right.get(key):
            remedy = f"differs from {right.get(key)!r}: results of two protocols cannot be compared"
            raise UserError(f"protocol.{key}", left.get(key), remedy)


def slug(name: str) -> str:
    """A sampler's name as a file name: "teacher@ddim:50" -> "teacher_ddim_50"."""
    return re.sub(r"[^A-Za-z0-9+.-]", "_", name)
