"""What goes on around a run: another run, another configuration, a clock that jumps, links that lead out of it."""

import json
import shutil
import signal

import pytest

from fewstep import files
from fewstep.errors import UserError
from fewstep.pipeline.stages.lock import run_lock
from fewstep.pipeline.training.checkpoint import list_checkpoints
from small_training import Training


def test_a_second_run_on_a_folder_is_refused_and_the_first_ends_the_same(whole_run, tmp_path):
    run = whole_run.before("eval", tmp_path / "out")
    link = tmp_path / "link"
    link.symlink_to(run.folder)
    with run_lock(link):  # the same folder by another name
        code, _, err = run.make("eval")
        assert code == 2
        assert err.count("\n") == 1
        assert "is in use by another run (process " in err
        assert not (run.folder / "eval").exists()
        assert run.make("report")[0] == 2
    assert run.make("eval")[0] == 0
    assert run.results("eval") == whole_run.results("eval")


def test_a_changed_configuration_is_refused_and_the_old_one_still_goes_on(whole_run, tmp_path):
    run = whole_run.before("teacher", tmp_path)
    assert run.make("teacher", "die_after_three_saves")[0] == 9
    held = {path: files.sha256_file(path) for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    code, _, err = run.forks.run("command", argv=[*run.argv("teacher"), "--teacher.train.weight_decay", "0.5"])
    assert code == 2
    assert "was made by another configuration; go back to that configuration" in err
    assert err.count("\n") == 1
    assert held == {path: files.sha256_file(path) for path in held}
    code, out, _ = run.make("teacher")
    assert code == 0
    assert "continues at step 12 of 24" in out
    assert run.results("teacher") == whole_run.results("teacher")


@pytest.mark.parametrize(
    "fault",
    ["clock_backwards", *(pytest.param(f"clock_{how}", marks=pytest.mark.soak) for how in ("forwards", "stopped"))],
)
def test_a_clock_that_jumps_changes_nothing_but_the_times(whole_run, tmp_path, fault):
    run = whole_run.before("teacher", tmp_path)
    code, _, err = run.make("teacher", fault)
    assert code == 0, err
    assert run.results("teacher") == whole_run.results("teacher")
    assert run.saved() == {place: value for place, value in whole_run.saved().items() if place[0] == "teacher"}


def precious(folder):
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def check_untouched(folder):
    assert [path.name for path in folder.iterdir()] == ["precious"]
    assert (folder / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["out", ".out.new", ".out.old"])
def test_a_link_in_the_place_of_a_staged_folder_is_replaced_and_not_followed(tmp_path, name):
    outside = precious(tmp_path / "outside")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(outside)
    for text in ("one", "two"):
        with files.staged_folder(tmp_path / "run" / "out") as stage:
            (stage / "file").write_text(text)
        assert (tmp_path / "run" / "out" / "file").read_text() == text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["out"]
    check_untouched(outside)


def test_a_link_to_nothing_is_replaced_too(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    with files.staged_folder(tmp_path / "out") as stage:
        (stage / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_links_among_old_checkpoints_are_removed_and_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.pipeline.training.log._has_tensorboard", lambda: False)
    outside, training = precious(tmp_path / "outside"), Training(tmp_path / "run")
    training.job.checkpoints.mkdir(parents=True)
    for name in ("step-000000001", ".step-000000003.new", ".step-000000002.old"):
        (training.job.checkpoints / name).symlink_to(outside)
    with pytest.raises(UserError, match="holds no good checkpoint"):
        training.run()
    (training.job.checkpoints / "step-000000001").unlink()
    training.run()
    assert sorted(path.name for path in training.job.checkpoints.iterdir()) == ["step-000000010", "step-000000012"]
    check_untouched(outside)


def test_an_oldest_checkpoint_that_is_a_link_is_removed_and_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.pipeline.training.log._has_tensorboard", lambda: False)
    outside, training = precious(tmp_path / "outside"), Training(tmp_path / "run")
    training.run(interrupted_at=3)
    (training.job.checkpoints / "step-000000001").symlink_to(outside)
    training.run()
    assert len(list_checkpoints(training.job.checkpoints)) == 2
    check_untouched(outside)


def test_a_lock_that_is_a_link_is_refused_and_its_target_is_not_emptied(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match="symbolic links"), run_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_run_whose_folders_are_links_keeps_what_they_point_to(whole_run, tmp_path):
    outside = precious(tmp_path / "outside")
    run = whole_run.before("eval", tmp_path / "out")
    (run.folder / "eval").symlink_to(outside)
    (run.folder / "checkpoints" / "eval").symlink_to(precious(tmp_path / "work"))
    (run.folder / "checkpoints" / "eval" / ".scratch-old").symlink_to(outside)
    shutil.move(run.folder, tmp_path / "real")
    run.folder.symlink_to(tmp_path / "real")
    code, _, err = run.make("eval")
    assert code == 0, err
    check_untouched(outside)
    assert (tmp_path / "work" / "precious").read_text() == "mine"
    assert not (tmp_path / "real" / "eval").is_symlink()
    assert not (tmp_path / "real" / "checkpoints" / "eval").exists()
    assert json.loads((tmp_path / "real" / "eval" / "benchmark.json").read_text())["format"] == 1


def test_what_a_killed_write_left_is_swept_by_the_next_run(whole_run, tmp_path):
    run = whole_run.before("teacher", tmp_path)
    assert run.make("teacher", "die_in_the_middle_of_a_write")[0] == -signal.SIGKILL
    assert [path.name for path in run.folder.glob(".config.yaml.*")] != []
    (run.folder / ".mine.tmp").write_text("mine")
    assert run.make("teacher")[0] == 0
    assert run.leftovers() == ["digits/.mine.tmp"]
