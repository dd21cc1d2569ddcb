"""Trajectories in a run: made once, shard by shard, before the students that learn from them, and not without need."""

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.files import read_json, sha256_file
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.stages import trajectories as stage
from fewstep.students import trajectories
from fewstep.students.trajectories import read_trajectories

pytestmark = pytest.mark.timeout(600)
SETTINGS = {"student__method": "cmt", "student__train__kimg": 0.128, "student__refit_steps": 2}
SETTINGS |= {"trajectories__number": 70, "trajectories__steps": 2}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards of 70 trajectories."""
    for module in (stage, trajectories):
        monkeypatch.setattr(module, "SHARD", 32)


@pytest.fixture
def run(tiny_run: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """run(setting=..., ...): distils in a copy of a run with a teacher; the exit code, and what was printed."""
    shutil.copytree(tiny_run, tmp_path / "digits", ignore=shutil.ignore_patterns("students", "trajectories"))

    def run(**changes: Any) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["distill", *tiny(tmp_path, **(SETTINGS | changes))])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "digits"


def shards(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in (folder / "trajectories").glob("*.safetensors")}


def made(text: str) -> list[str]:
    return [line.partition(":")[0] for line in text.splitlines() if ": done in " in line]


def test_they_are_made_once_and_only_for_a_student_that_is_to_be_trained(run: Any, folder: Path):
    adversarial = {"student__adversarial": "{width: 4, share: 0.5}"}
    code, text = run(**adversarial)
    assert (code, made(text)) == (0, ["trajectories", "student"])
    manifest = read_json(folder / "trajectories" / "manifest.json")
    assert manifest["evaluations"] == 140
    assert manifest["fd"] > 0
    assert manifest["fd_images"] == 66  # eval.images
    assert set(manifest["outputs"]) == {*shards(folder), "trajectories.json"}
    kept = read_trajectories(folder / "trajectories")
    assert [tuple(shard.shape) for shard in kept.shards] == [(n, 3, 1, 8, 8) for n in (32, 32, 6)]
    assert not list((folder / "checkpoints").iterdir())
    code, text = run()
    assert made(text) == ["student"]
    assert "trajectories: up to date" in text
    shutil.rmtree(folder / "trajectories")
    assert made(run()[1]) == []
    assert made(run(student__search_images=33)[1]) == ["student"]
    assert not (folder / "trajectories").exists()
    assert made(run(student__train__learning_rate=1e-3)[1]) == ["trajectories", "student"]


def test_other_settings_of_theirs_make_them_and_the_student_again(run: Any, folder: Path):
    assert run()[0] == 0
    before = read_trajectories(folder / "trajectories").shards[0].clone()
    code, text = run(trajectories__number=40, trajectories__dtype="float16", trajectories__precision="bf16")
    assert (code, made(text)) == (0, ["trajectories", "student"])
    changed = "trajectories.dtype float32 -> float16, trajectories.number 70 -> 40, "
    changed += "trajectories.precision fp32 -> bf16"
    assert f"student: {changed}: distilled again" in text
    assert f"trajectories: {changed}: made again" in text
    kept = read_trajectories(folder / "trajectories")
    assert ([len(shard) for shard in kept.shards], kept.shards[0].dtype) == ([32, 8], torch.float16)
    rounding = (kept.shards[0][:, -1].float() - before[:, -1]).abs().mean()  # of bf16: float16's own is 2e-4
    assert 1e-3 < float(rounding) < 5e-2


def test_an_interruption_leaves_the_shards_that_are_whole(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def terminated(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    numbers, points, write = [], stage._points, stage.write_shard
    monkeypatch.setattr(stage, "_points", lambda *given: numbers.append(given[3]) or points(*given))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_shard", lambda path, x: terminated() if len(numbers) == 3 else write(path, x))
        with pytest.raises(SystemExit):
            run()
    [first] = (folder / "checkpoints" / "trajectories").glob("*/points-00000.safetensors")
    with open(first, "r+b") as file:  # and a byte of it turns
        file.seek(-3, os.SEEK_END)
        file.write(b"\x7f")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "frechet_distance", terminated)
        with pytest.raises(SystemExit):
            run()
    assert not (folder / "trajectories").exists()
    assert made(run()[1]) == ["trajectories", "student"]
    assert numbers == [0, 1, 2, 0, 2]
    interrupted = shards(folder)
    shutil.rmtree(folder / "trajectories")
    assert run(student__train__learning_rate=1e-3)[0] == 0
    assert numbers[5:] == [0, 1, 2]
    assert shards(folder) == interrupted


def test_those_of_a_half_finished_student_are_left_alone(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.pipeline.stages.student.save_student", full)
        assert run()[0] == 2
    before = shards(folder)
    code, text = run(trajectories__number=40)
    assert code == 2
    assert "was made by another configuration" in text
    assert shards(folder) == before
    assert made(run()[1]) == ["student"]


def test_a_level_above_the_teachers_is_refused(run: Any, folder: Path):
    code, text = run(student__sigma_max=30000)
    assert code == 2
    assert "student.sigma_max: 30000.0: is above the teacher's largest noise level; give at most 202" in text
    assert "evaluations of the teacher" not in text
    assert not (folder / "trajectories").exists()
