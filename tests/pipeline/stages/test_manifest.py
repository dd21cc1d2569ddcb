"""A stage is made when it is missing, stale or damaged, complete or not at all."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fewstep.errors import UserError
from fewstep.files import read_json, sha256_file
from fewstep.pipeline.stages.manifest import MANIFEST, is_fresh, make_stage, stage_hash, verify_outputs

INPUTS = {"teacher": {"train": {"kimg": 2.0, "betas": [0.9, 0.99]}}, "seed": 0}


def build(stage):
    (stage / "unet").mkdir()
    (stage / "unet" / "weights").write_bytes(b"12345")
    (stage / "index.json").write_text("{}")
    return {"parameters": 5}


@pytest.fixture
def stage(tmp_path):
    make_stage(tmp_path / "teacher", INPUTS, {"seed": 0}, build)
    return tmp_path / "teacher"


def test_a_manifest_names_inputs_time_and_every_output(stage):
    manifest = read_json(stage / MANIFEST)
    assert manifest["stage"] == "teacher"
    assert manifest["inputs"] == INPUTS
    assert manifest["parameters"] == 5
    assert manifest["seed"] == 0
    assert manifest["outputs"] == {
        name: {"sha256": sha256_file(stage / name), "size": size}
        for name, size in (("index.json", 2), ("unet/weights", 5))
    }
    assert is_fresh(stage, INPUTS)
    verify_outputs(stage)


def test_what_changed_is_said_by_its_dotted_name(stage, capsys):
    capsys.readouterr()
    now = {"teacher": {"train": {"kimg": 3.0, "betas": [0.9, 0.99]}}, "seed": 0}
    assert not is_fresh(stage, now)
    assert capsys.readouterr().out == "teacher: stale (teacher.train.kimg changed since), made again\n"
    assert not is_fresh(stage, {"teacher": INPUTS["teacher"]})
    assert "seed" in capsys.readouterr().out


def test_a_missing_or_shorter_output_makes_the_stage_again(stage, capsys):
    (stage / "unet" / "weights").write_bytes(b"123")
    assert not is_fresh(stage, INPUTS)
    assert "unet/weights is missing or was cut short" in capsys.readouterr().out
    (stage / "unet" / "weights").unlink()
    assert not is_fresh(stage, INPUTS)


def test_a_changed_byte_is_named(stage):
    (stage / "unet" / "weights").write_bytes(b"12346")
    assert is_fresh(stage, INPUTS)
    with pytest.raises(UserError, match=r"unet/weights: is corrupt \(its sha256 changed\); remove .*teacher"):
        verify_outputs(stage)


def test_a_stage_that_is_not_there_is_not_fresh(tmp_path):
    assert not is_fresh(tmp_path / "teacher", INPUTS)


def test_a_stage_moved_aside_by_a_killed_run_is_put_back(stage):
    stage.rename(stage.with_name(".teacher.old"))
    assert is_fresh(stage, INPUTS)


def test_a_malformed_manifest_is_named(stage):
    (stage / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"teacher/manifest\.json: is not valid JSON"):
        is_fresh(stage, INPUTS)


def test_the_stages_after_it_see_a_change_of_outputs_alone(tmp_path, stage):
    before = stage_hash(stage)
    make_stage(stage, {"other": 1}, {"seed": 5}, build)
    assert stage_hash(stage) == before

    def another(folder: Path) -> None:
        (folder / "index.json").write_text("[]")

    make_stage(stage, INPUTS, {}, another)
    assert stage_hash(stage) != before


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), UserError("x", None, "y"), OSError(errno.ENOSPC, "full")])
def test_a_stage_that_fails_leaves_the_earlier_one(stage, fault):
    before = read_json(stage / MANIFEST)

    def fail(folder):
        build(folder)
        raise fault

    with pytest.raises(type(fault)):
        make_stage(stage, {"new": 1}, {}, fail)
    assert read_json(stage / MANIFEST) == before
    assert [path.name for path in stage.parent.iterdir()] == ["teacher"]


def test_a_full_disk_under_safetensors_is_an_os_error_that_names_the_run(tmp_path):
    def fail(folder):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as full:
        make_stage(tmp_path / "teacher", INPUTS, {}, fail)
    assert full.value.errno == errno.ENOSPC
    assert full.value.filename == str(tmp_path)
    assert os.listdir(tmp_path) == []


def test_other_faults_of_safetensors_stay_what_they_are(tmp_path):
    def fail(folder):
        raise SafetensorError("Error while deserializing header: incomplete metadata")

    with pytest.raises(SafetensorError):
        make_stage(tmp_path / "teacher", INPUTS, {}, fail)
