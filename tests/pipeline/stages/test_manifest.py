"""A stage is made when it is missing, stale or damaged, complete or not at all."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fewstep.errors import UserError
from fewstep.files import read_json, sha256_file
from fewstep.pipeline.stages.manifest import (
    MANIFEST,
    changed_inputs,
    folder_hash,
    make_stage,
    model_hash,
    verify_outputs,
)

INPUTS = {"teacher": {"train": {"kimg": 2.0, "betas": [0.9, 0.99]}}, "seed": 0}


def build(stage):
    (stage / "unet").mkdir()
    (stage / "unet" / "weights.safetensors").write_bytes(b"12345")
    (stage / "index.json").write_text("{}")
    return {"parameters": 5}


@pytest.fixture
def stage(tmp_path):
    make_stage(tmp_path / "teacher", "teacher", INPUTS, {"seed": 0}, build)
    return tmp_path / "teacher"


def test_a_manifest_names_inputs_time_and_every_output(stage):
    manifest = read_json(stage / MANIFEST)
    assert manifest["stage"] == "teacher"
    assert manifest["inputs"] == INPUTS
    assert manifest["parameters"] == 5
    assert manifest["seed"] == 0
    assert manifest["outputs"] == {
        name: {"sha256": sha256_file(stage / name), "size": size}
        for name, size in (("index.json", 2), ("unet/weights.safetensors", 5))
    }
    assert changed_inputs(stage, "teacher", INPUTS) == {}
    verify_outputs(stage)


def test_what_changed_is_told_by_its_dotted_name_old_and_new(stage):
    now = {"teacher": {"train": {"kimg": 3.0, "betas": [0.9, 0.99]}}, "seed": 0}
    changed = changed_inputs(stage, "teacher", now)
    assert changed == {"teacher.train.kimg": "teacher.train.kimg 2.0 -> 3.0"}
    assert changed_inputs(stage, "teacher", {"teacher": INPUTS["teacher"]}) == {"seed": "seed 0 -> none"}
    hashes = changed_inputs(stage, "teacher", INPUTS | {"weights.data": "ab" * 32})
    assert hashes == {"weights.data": "data is new"}


def test_a_missing_or_shorter_output_makes_the_stage_again(stage, capsys):
    (stage / "unet" / "weights.safetensors").write_bytes(b"123")
    assert changed_inputs(stage, "teacher", INPUTS) is None
    assert "unet/weights.safetensors is missing or was cut short" in capsys.readouterr().out
    (stage / "unet" / "weights.safetensors").unlink()
    assert changed_inputs(stage, "teacher", INPUTS) is None


def test_a_changed_byte_is_named(stage):
    (stage / "unet" / "weights.safetensors").write_bytes(b"12346")
    assert changed_inputs(stage, "teacher", INPUTS) == {}
    with pytest.raises(
        UserError, match=r"unet/weights\.safetensors: is corrupt \(its sha256 changed\); remove .*teacher"
    ):
        verify_outputs(stage)


def test_a_stage_that_is_not_there_is_not_fresh(tmp_path):
    assert changed_inputs(tmp_path / "teacher", "teacher", INPUTS) is None


def test_a_stage_moved_aside_by_a_killed_run_is_put_back(stage):
    stage.rename(stage.with_name(".teacher.old"))
    assert changed_inputs(stage, "teacher", INPUTS) == {}


def test_a_malformed_manifest_is_named(stage):
    (stage / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"teacher/manifest\.json: is not valid JSON"):
        changed_inputs(stage, "teacher", INPUTS)


def test_the_stages_after_it_see_a_change_of_weights_and_configurations_alone(tmp_path, stage):
    before = model_hash(stage)
    assert folder_hash(stage) == before
    make_stage(stage, "teacher", {"other": 1}, {"seed": 5}, build)
    assert model_hash(stage) == before

    def with_a_card(folder: Path) -> None:
        build(folder)
        (folder / "README.md").write_text("made by another version")

    make_stage(stage, "teacher", INPUTS, {}, with_a_card)
    assert folder_hash(stage) == model_hash(stage) == before

    def another(folder: Path) -> None:
        build(folder)
        (folder / "index.json").write_text("[]")

    make_stage(stage, "teacher", INPUTS, {}, another)
    assert folder_hash(stage) == model_hash(stage) != before


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), UserError("x", None, "y"), OSError(errno.ENOSPC, "full")])
def test_a_stage_that_fails_leaves_the_earlier_one(stage, fault):
    before = read_json(stage / MANIFEST)

    def fail(folder):
        build(folder)
        raise fault

    with pytest.raises(type(fault)):
        make_stage(stage, "teacher", {"new": 1}, {}, fail)
    assert read_json(stage / MANIFEST) == before
    assert [path.name for path in stage.parent.iterdir()] == ["teacher"]


def test_a_full_disk_under_safetensors_is_an_os_error(tmp_path):
    def fail(folder):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as full:
        make_stage(tmp_path / "teacher", "teacher", INPUTS, {}, fail)
    assert full.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_other_faults_of_safetensors_stay_what_they_are(tmp_path):
    def fail(folder):
        raise SafetensorError("Error while deserializing header: incomplete metadata")

    with pytest.raises(SafetensorError):
        make_stage(tmp_path / "teacher", "teacher", INPUTS, {}, fail)
