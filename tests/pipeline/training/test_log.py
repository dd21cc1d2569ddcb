"""The log of a training run: each step once, whatever cut it off."""

import json
import time

import pytest

from fewstep.pipeline.training import log
from fewstep.pipeline.training.levels import KEYS
from fewstep.pipeline.training.log import TrainingLog


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "_has_tensorboard", lambda: False)
    return tmp_path / "logs" / "teacher.jsonl"


def write(path, start, stop, loss=0.5):
    records = TrainingLog(path, path.parent / "tensorboard", start)
    for step in range(start + 1, stop + 1):
        records.write({"step": step, "loss": loss})
    records.close()


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_one_json_object_a_line(path):
    write(path, 0, 3)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": step, "loss": 0.5} for step in (1, 2, 3)
    ]


def test_a_resumed_run_repeats_no_step(path):
    write(path, 0, 5)
    write(path, 3, 6, loss=0.25)
    assert steps(path) == [1, 2, 3, 4, 5, 6]
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [0.5] * 3 + [0.25] * 3


def test_a_run_that_starts_anew_starts_the_log_anew(path):
    write(path, 0, 5)
    write(path, 0, 2)
    assert steps(path) == [1, 2]


def test_a_line_cut_short_by_a_full_disk_is_dropped(path):
    write(path, 0, 5)
    path.write_text(path.read_text()[:-9])
    write(path, 5, 6)
    assert steps(path) == [1, 2, 3, 4, 6]


def test_tensorboard_keeps_the_last_point_before_an_interruption(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (20, 40, 60)), (40, (60, 80))):  # interrupted after 60, the checkpoint is of step 40
        records = TrainingLog(tmp_path / "a.jsonl", tmp_path / "board", start)
        for step in steps:
            records.write({"step": step, "loss": float(step + start)})
        records.close()
        time.sleep(1.1)  # files are read by name: the second, then the writer's number as text, of which 10 is before 9
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(20, 20), (40, 40), (60, 100), (80, 120)]


def test_a_file_in_the_place_of_tensorboard_s_folder_is_met_before_any_work(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "board").write_text("?")
    with pytest.raises(FileExistsError):
        TrainingLog(tmp_path / "a.jsonl", tmp_path / "board", 0)


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = TrainingLog(tmp_path / "a.jsonl", tmp_path / "board", 0)
    for step in (20, 40):
        records.write({"step": step, "loss": step / 10, "lr": 0.5} | dict.fromkeys(KEYS, 0.25))
    records.close()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert sorted(board.Tags()["scalars"]) == sorted(["loss", "lr", *KEYS])
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(20, 2.0), (40, 4.0)]
