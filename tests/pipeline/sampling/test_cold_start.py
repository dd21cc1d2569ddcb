"""The cold start: measured in a new process that does not outlive the call, kept, and null where it fails."""

import subprocess
import time

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from fewstep.files import read_json, write_json
from fewstep.pipeline.sampling.cold_start import add_cold_starts, cold_start
from fewstep.pipeline.sampling.subjects import open_subject


@pytest.fixture
def subject(tiny_unet, tmp_path):
    """A small pipeline at two steps."""
    DDIMPipeline(tiny_unet(), DDIMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "ddim")
    return f"{tmp_path / 'ddim'}@2"


@pytest.fixture
def processes(monkeypatch):
    """The processes that are started, in a list."""
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return started


def test_a_new_process_measures_import_load_and_first_image(subject):
    start = time.perf_counter()
    found = cold_start(subject, "cpu")
    whole = time.perf_counter() - start
    assert found is not None
    assert list(found) == ["import_s", "load_s", "first_image_s"]
    assert min(found.values()) > 0
    assert sum(found.values()) < whole
    assert found["import_s"] > 0.1  # torch and diffusers, which this process has long had


def test_a_subject_that_cannot_be_opened_is_none_and_a_line(capsys):
    assert cold_start("nowhere", "cpu") is None
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "warning: the cold start of nowhere was not measured: " in line
    assert "no such folder or file" in line


def test_a_start_that_takes_too_long_is_ended(subject, processes, capsys):
    assert cold_start(subject, "cpu", seconds=0.05) is None
    assert "it took longer than 0.05 s" in capsys.readouterr().out
    assert [process.returncode for process in processes] == [-9]


def test_the_process_ends_with_a_call_that_is_interrupted(subject, processes, monkeypatch):
    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cold_start(subject, "cpu")
    assert [process.returncode for process in processes] == [-9]


def test_loading_does_not_hash(subject, monkeypatch):
    monkeypatch.setattr("fewstep.pipeline.sampling.subjects.folder_hash", lambda path: pytest.fail("hashed"))
    assert open_subject(subject, torch.device("cpu"))[0].name == subject


def test_what_is_measured_is_kept_and_a_failure_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "samplers").mkdir()
    results = {"kept": {"load_s": 1.0}, "failed": None, "other": None}
    for name, value in results.items():
        write_json(tmp_path / "samplers" / f"{name}.json", {"name": name, "cold_start": value})
    write_json(tmp_path / "samplers" / "old.json", {"name": "old"})  # of a version that measured none
    found = dict.fromkeys(("import_s", "load_s", "first_image_s"), 2.0)
    asked = []

    def measured(text, device, *, trust):
        asked.append((text, device, trust))
        return None if text == "FAILED" else found

    monkeypatch.setattr("fewstep.pipeline.sampling.cold_start.cold_start", measured)
    add_cold_starts(tmp_path, {"kept": "KEPT", "failed": "FAILED", "old": "OLD"}, torch.device("cpu"), trust=True)
    assert asked == [("FAILED", "cpu", True), ("OLD", "cpu", True)]
    written = {path.stem: read_json(path) for path in (tmp_path / "samplers").iterdir()}
    assert {name: value["cold_start"] for name, value in written.items()} == results | {"old": found}
    assert all(value["name"] == name for name, value in written.items())


def test_a_run_measures_the_cheapest_sampler_of_each_network(tiny_run):
    measured = {path.stem: read_json(path)["cold_start"] for path in (tiny_run / "eval" / "samplers").iterdir()}
    assert {name for name, value in measured.items() if value} == {"teacher_ddim_2", "student_1"}
