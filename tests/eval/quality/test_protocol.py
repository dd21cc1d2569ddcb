"""The protocol object: its hash, its JSON, and naming the field in which two differ."""

import dataclasses
import json

import pytest

from fewstep.errors import UserError
from fewstep.eval.quality.protocol import Protocol, check_same

PROTOCOL = Protocol(
    reference={"dataset": "digits", "split": "train", "count": 1797, "sha256": "ab"},
    extractor={"name": "digits-cnn", "sha256": "cd", "resize": "none"},
    images=1000,
    encoding="uint8",
)


def test_json_round_trip_keeps_the_hash():
    stored = json.loads(json.dumps(PROTOCOL.to_json()))
    assert Protocol.from_json(stored) == PROTOCOL
    assert stored["hash"] == PROTOCOL.hash


def test_a_stored_protocol_that_was_edited_is_refused():
    with pytest.raises(UserError, match=r"protocol\.hash"):
        Protocol.from_json({**PROTOCOL.to_json(), "images": 50000})


def test_equal_protocols_are_the_same():
    check_same(PROTOCOL, dataclasses.replace(PROTOCOL))


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("images", dataclasses.replace(PROTOCOL, images=2500)),
        ("encoding", dataclasses.replace(PROTOCOL, encoding="jpeg")),
        ("reference.count", dataclasses.replace(PROTOCOL, reference={**PROTOCOL.reference, "count": 10})),
        ("extractor.sha256", dataclasses.replace(PROTOCOL, extractor={**PROTOCOL.extractor, "sha256": "ef"})),
        ("extractor.crop", dataclasses.replace(PROTOCOL, extractor={**PROTOCOL.extractor, "crop": "center"})),
    ],
)
def test_the_field_that_differs_is_named_and_changes_the_hash(field, other):
    assert other.hash != PROTOCOL.hash
    with pytest.raises(UserError, match=rf"protocol\.{field}: .*cannot be compared"):
        check_same(PROTOCOL, other)
