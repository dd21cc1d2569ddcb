"""Damaged files: named with their step, never used, and the good checkpoint before them is taken aloud."""

import os
import shutil
from random import Random

import pytest

from faults.killing import PLACES
from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.quality.reference_files import read_reference
from fewstep.eval.quality.references import load_halves, load_reference, write_features
from fewstep.files import restore_folder
from fewstep.pipeline.stages.manifest import changed_inputs, read_manifest, verify_outputs
from fewstep.pipeline.training.checkpoint import MANIFEST, latest_checkpoint, list_checkpoints, verify_checkpoint
from small_training import Training

HASH = "c0ffee"
SOAK_FLIPS = int(os.environ.get("SOAK_FLIPS", "1000"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoints of a finished training, steps 10 and 12."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.pipeline.training.log._has_tensorboard", lambda: False)
        training = Training(tmp_path_factory.mktemp("trained"))
        training.run()
    assert len(list_checkpoints(training.job.checkpoints)) == 2
    return training.job.checkpoints


@pytest.fixture
def checkpoints(trained, tmp_path):
    """A copy of them, older and newer."""
    shutil.copytree(trained, tmp_path / "checkpoints")
    return list_checkpoints(tmp_path / "checkpoints")


def damage(path, random: Random):
    """Change one byte of a file to another value, or flip one bit of it; returns what it was."""
    sound = path.read_bytes()
    data = bytearray(sound)
    place = random.randrange(len(data))
    data[place] ^= random.choice([random.randrange(1, 256), 1 << random.randrange(8)])
    path.write_bytes(data)
    return sound


def flips_detected(folder, count, seed, detected):
    """How many of `count` damaged bytes over all files of a folder `detected(file)` tells of, and the others."""
    random, missed = Random(seed), []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        path = files[number % len(files)]
        sound = damage(path, random)
        if not detected(path):
            missed.append(f"{path.name}: {path.read_bytes()[:400]!r}")
        path.write_bytes(sound)
    return count - len(missed), missed


def check_checkpoint(checkpoints, count, seed, survived):
    older, newer = checkpoints

    def detected(path):
        said = []
        taken = latest_checkpoint(older.parent, HASH, said.append)
        return taken == older and len(said) == 1 and said[0].startswith(f"WARNING: {path}: is ")  # its folder: the step

    found, missed = flips_detected(newer, count, seed, detected)
    survived("byte of a checkpoint changed", count, found)
    assert missed == []


def test_changed_bytes_of_a_checkpoint_are_named_and_the_one_before_is_taken(checkpoints, survived):
    check_checkpoint(checkpoints, 60, 0, survived)


@pytest.mark.soak
def test_many_changed_bytes_of_a_checkpoint_are_named(checkpoints, survived):
    check_checkpoint(checkpoints, SOAK_FLIPS, 1, survived)


def swap(folder):
    (folder / "ema.safetensors").rename(folder / "x")
    (folder / "objective.safetensors").rename(folder / "ema.safetensors")
    (folder / "x").rename(folder / "objective.safetensors")


BROKEN = {
    "objective.safetensors or ema.safetensors": swap,
    "extra": lambda folder: (folder / "extra").write_text("?"),
    "optimizer.safetensors": lambda folder: os.truncate(folder / "optimizer.safetensors", 100),
    "ema.safetensors": lambda folder: os.truncate(folder / "ema.safetensors", 0),
    "objective.safetensors": lambda folder: (folder / "objective.safetensors").unlink(),
    MANIFEST: lambda folder: (folder / MANIFEST).unlink(),
    "a folder for a file": lambda folder: ((folder / MANIFEST).unlink(), (folder / MANIFEST).mkdir()),
    "a file for a folder": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "a link to itself": lambda folder: ((folder / MANIFEST).unlink(), (folder / MANIFEST).symlink_to(MANIFEST)),
    "a number that is none": lambda folder: (folder / MANIFEST).write_text('{"losses": [1e999], "sha256": "x"}'),
}


@pytest.mark.parametrize("what", BROKEN)
def test_whatever_is_wrong_with_a_checkpoint_is_named_with_its_step(checkpoints, what):
    older, newer = checkpoints
    BROKEN[what](newer)
    with pytest.raises(UserError) as named:
        verify_checkpoint(newer)
    assert "step 12" in str(named.value) or "step-000000012" in str(named.value)
    assert "\n" not in str(named.value)
    if " " not in what:
        assert str(newer / what) in str(named.value)
    said = []
    assert latest_checkpoint(older.parent, HASH, said.append) == older
    assert said == [f"WARNING: {named.value}; trying the checkpoint before it"]


def test_a_training_resumes_before_a_damaged_checkpoint_and_ends_the_same(whole_run, tmp_path):
    run = whole_run.before("teacher", tmp_path)
    assert run.make("teacher", "die_after_three_saves")[0] == 9
    newer = list_checkpoints(run.folder / "checkpoints" / "teacher")[-1]
    damage(newer / "optimizer.safetensors", Random(3))
    code, out, _ = run.make("teacher")
    assert code == 0
    assert f"WARNING: {newer / 'optimizer.safetensors'}: is corrupt (checkpoint of step 12)" in out
    assert "continues at step 8 of 24" in out
    assert run.results("teacher") == whole_run.results("teacher")
    assert run.leftovers() == []


@pytest.mark.parametrize("record", ["kept", "damaged", "missing"])
def test_a_student_s_refit_is_not_made_again_unless_its_record_is_damaged(whole_run, tmp_path, record):
    run = whole_run.before("student", tmp_path)
    assert run.make("student", "die_after_three_saves")[0] == 9
    path = run.folder / "checkpoints" / "students" / "student" / "conversion.json"
    if record == "damaged":
        path.write_text(path.read_text().replace("0.", "1.", 1))
    if record == "missing":
        path.unlink()
    code, out, err = run.make("student")
    assert code == 0, err
    assert ("its time embedding was refitted before" in out) == (record == "kept")
    assert run.results("student") == whole_run.results("student")
    assert run.leftovers() == []


@pytest.mark.parametrize("stage", ["teacher", "student", "eval"])
def test_changed_bytes_of_a_finished_stage_are_named(whole_run, tmp_path, stage):
    made = whole_run.folder / PLACES.get(stage, stage)
    shutil.copytree(made, tmp_path / stage)
    folder, inputs = tmp_path / stage, read_manifest(made)["inputs"]

    def detected(path):
        try:
            assert changed_inputs(folder, "it", inputs) == {}
            verify_outputs(folder)
        except UserError as error:
            return str(path) in str(error) and "\n" not in str(error)
        now = read_manifest(folder)
        return path.name == "manifest.json" and all(now[key] == whole[key] for key in ("inputs", "outputs"))

    whole = read_manifest(folder)
    assert flips_detected(folder, 60, stage, detected)[1] == []
    restore_folder(folder)
    verify_outputs(folder)


def test_a_damaged_stage_stops_the_run_in_one_line_and_is_left_alone(whole_run, tmp_path):
    run = whole_run.before("eval", tmp_path)
    weights = run.folder / "students" / "student" / "unet" / "diffusion_pytorch_model.safetensors"
    damage(weights, Random(1))
    spoiled = weights.read_bytes()
    code, _, err = run.make("eval")
    assert code == 2
    assert err.count("\n") == 1
    assert f"{weights}: is corrupt" in err
    assert weights.read_bytes() == spoiled
    assert not (run.folder / "eval").exists()


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits-cnn", None, "cpu")


@pytest.mark.timeout(600)
def test_changed_bytes_of_a_reference_file_are_named(extractor, tmp_path):
    facts = {"dataset": "digits", "split": "train", "count": 60, "sha256": "0" * 64}
    path = tmp_path / "ref.safetensors"
    features = extractor(digits()[0][:60])
    write_features(path, features, facts, extractor)
    header = int.from_bytes(path.read_bytes()[:8], "little") + 8
    sound, random, missed = path.read_bytes(), Random(5), []
    for place in [*random.sample(range(header), 50), *random.sample(range(header, len(sound)), 10)]:
        data = bytearray(sound)
        data[place] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        try:
            found = read_reference(path, extractor)
        except UserError as error:
            assert "ref.safetensors" in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert found.features is not None
            if found.provenance != facts or not (found.features == features).all():
                missed.append(data[max(place - 40, 0) : place + 10])
    assert missed == []


def test_damaged_features_and_halves_in_the_cache_are_computed_again(extractor, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    images = digits()[0][:60]

    def made():
        features = load_reference(images, {"dataset": "digits", "split": "train"}, extractor).features
        assert features is not None
        return features, load_halves(features, 20)

    sound = made()
    files = sorted(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".safetensors", ".json"] or len(files) == 2
    random = Random(2)
    for path in files * 15:
        kept = damage(path, random) if random.random() < 0.8 else path.write_bytes(b"")
        caplog.clear()
        found = made()
        assert (found[0] == sound[0]).all()
        assert found[1] == sound[1]
        assert [record.message for record in caplog.records if str(path) in record.message] or kept == path.read_bytes()
