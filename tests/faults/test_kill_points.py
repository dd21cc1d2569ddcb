"""A process that ends at any filesystem step of a save: the last good checkpoint stays, and training ends the same."""

import json
import re
import shutil

import pytest

from faults.forks import Forks
from fewstep.files import sha256_file
from fewstep.pipeline.training.checkpoint import MANIFEST, latest_checkpoint

LAST = 12
SAVED = (2, 4, 6, 8, 10, 12)


def left(folder):
    """The last checkpoint's tensors and the log without its clock."""
    checkpoint = folder / "checkpoints" / f"step-{LAST:09d}"
    records = [json.loads(line) for line in (folder / "teacher.jsonl").read_text().splitlines()]
    kept = [{key: record[key] for key in ("step", "loss", "grad_norm", "lr")} for record in records]
    return {path.name: sha256_file(path) for path in checkpoint.glob("*.safetensors")}, kept


def newest(folder):
    """The step of the newest checkpoint, which must be whole; 0 where there is none."""
    found = latest_checkpoint(folder / "checkpoints", "c0ffee", pytest.fail)
    return 0 if found is None else json.loads((found / MANIFEST).read_text())["step"]


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory):
    """What an uninterrupted training leaves, and the labels of its filesystem steps in order."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, err = forks.run("training", folder=str(folder), labels=str(folder / "labels"))
    assert code == 0, err
    return left(folder), (folder / "labels").read_text().splitlines()


def third_save(labels):
    """The positions of the steps of the third save, the first that removes an older one; the log goes first."""
    starts = [index for index, label in enumerate(labels) if label == "fsync teacher.jsonl"]
    return range(starts[2], starts[3])


def test_the_steps_of_a_save_are_the_ones_promised(whole):
    save = [whole[1][index] for index in third_save(whole[1])]
    tensors = [label.removeprefix("write half of ") for label in save if label.startswith("write half of ")]
    assert tensors == ["objective.safetensors", "ema.safetensors", "optimizer.safetensors"]
    renamed = save.index("rename .step-000000006.new")
    flushed = {label.removeprefix("fsync ") for label in save[:renamed] if label.startswith("fsync ")}
    assert {*tensors, MANIFEST, ".step-000000006.new"} <= flushed  # all that the rename makes visible
    assert renamed < save.index("fsync checkpoints") < save.index(f"unlink {MANIFEST}")
    assert save[-1] == "rmdir step-000000002"  # the oldest goes last


def check(forks, whole, tmp_path, survived, points) -> None:
    (tensors, log), labels = whole
    wrong, lost = [], []
    for point in points:
        folder = tmp_path / str(point)
        assert forks.run("training", folder=str(folder), die_at=point)[0] == 9
        renamed = sum(bool(re.fullmatch(r"rename \.step-\d+\.new", label)) for label in labels[:point])
        kept = newest(folder)
        if kept != (0, *SAVED)[renamed]:
            wrong.append(f"{labels[point]}: {kept} is the newest checkpoint after {renamed} of them were renamed")
        trained = (folder / "teacher.jsonl").read_text().count("\n") if (folder / "teacher.jsonl").exists() else 0
        lost.append(float(max(trained - kept, 0)))
        code, out, err = forks.run("training", folder=str(folder))
        if code != 0 or left(folder) != (tensors, log):
            wrong.append(f"{labels[point]}: exit code {code}, another result; {err}")
        if kept and f"continues at step {kept} of {LAST}" not in out:
            wrong.append(f"{labels[point]}: did not continue at step {kept}")
        if hidden := [path.name for path in folder.rglob(".*")]:
            wrong.append(f"{labels[point]}: left behind {hidden}")
        shutil.rmtree(folder)
    survived("killed at a filesystem step of a save", len(points), len(points) - len(wrong), lost, "steps")
    assert wrong == []
    assert max(lost) <= 2  # the steps since the save before


def test_a_kill_at_any_step_of_the_save_that_removes_the_oldest_changes_nothing(forks, whole, tmp_path, survived):
    points = third_save(whole[1])
    assert len(points) >= 20
    check(forks, whole, tmp_path, survived, points)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_kill_at_any_step_of_any_save_changes_nothing(forks, whole, tmp_path, survived):
    check(forks, whole, tmp_path, survived, range(len(whole[1])))
