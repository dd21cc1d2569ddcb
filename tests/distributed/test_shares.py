"""Trajectories, the search and the evaluation in two processes: what one gives to the bit, through ends of either."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_arguments

from fewstep.files import read_json, sha256_file
from fewstep.pipeline.cli.main import main
from several import SLICES, ended, started, wait_for

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
SETTINGS = SLICES | {"student__method": "cmt", "student__refit_steps": 2, "student__train__kimg": 0.128}
SETTINGS |= {"trajectories__number": 3100, "trajectories__steps": 4, "eval__images": 130, "eval__batch_size": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its student, by one process."""
    out = tmp_path_factory.mktemp("made")
    assert main(["distill", *tiny_arguments(out, **SETTINGS)]) == 0
    return out / "digits"


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob(pattern)}


def test_trajectories_are_dealt_out_and_taken_up_after_a_signal_to_one(made, tmp_path):
    shutil.copytree(made, tmp_path / "digits", ignore=shutil.ignore_patterns("trajectories", "students"))
    arguments = ["distill", *tiny_arguments(tmp_path, **SETTINGS)]
    processes = started([arguments, arguments])
    wait_for(tmp_path / "digits", "checkpoints/trajectories/*/points-*.json")
    processes[1].send_signal(signal.SIGTERM)
    clock = time.monotonic()
    (code, said, errors), (other, *_) = ended(processes, 20)
    assert (code, other, errors) == (143, 143, ""), errors
    assert "process 1 has got SIGTERM" in said
    assert time.monotonic() - clock < 10
    whole = {path: path.stat().st_mtime for path in (tmp_path / "digits").glob("checkpoints/trajectories/*/*.safe*")}
    assert 0 < len(whole) < 4
    (code, said, errors), (other, *_) = ended(started([arguments, arguments]))
    assert (code, other) == (0, 0), errors
    assert said.count("trajectories: done in") == 1
    folder = tmp_path / "digits" / "trajectories"
    assert hashes(folder, "*.safetensors") == hashes(made / "trajectories", "*.safetensors")
    assert all((folder / path.name).stat().st_mtime == time for path, time in whole.items())


def measured(run: Path) -> dict[str, Any]:
    """All of a search and an evaluation that no clock gives."""
    search = read_json(run / "students" / "student" / "manifest.json")["search"]
    del search["cost"]["seconds"]
    qualities = {path.name: read_json(path)["quality"] for path in (run / "eval" / "samplers").iterdir()}
    return {"search": search, "quality": qualities} | hashes(run / "eval" / "grids", "*.png")


def test_a_search_and_an_evaluation_are_those_of_one_process_to_the_bit(made, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(made, tmp_path / name / "digits")
    again = SETTINGS | {"student__search_images": 80}
    assert main(["benchmark", *tiny_arguments(tmp_path / "one", **again)]) == 0
    arguments = ["benchmark", *tiny_arguments(tmp_path / "two", **again)]
    processes = started([arguments, arguments])
    wait_for(tmp_path / "two" / "digits", "checkpoints/eval/samplers/*.json")
    processes[0].kill()
    clock = time.monotonic()
    assert ended(processes, 20)[1] == (2, "", "")
    assert time.monotonic() - clock < 10
    (code, said, errors), (other, *_) = ended(started([arguments, arguments]))
    assert (code, other) == (0, 0), errors
    assert "student: up to date" in said
    assert measured(tmp_path / "two" / "digits") == measured(tmp_path / "one" / "digits")


def test_a_fault_in_one_process_is_said_by_the_first_and_ends_all(made, tmp_path):
    shutil.copytree(made, tmp_path / "digits")
    (tmp_path / "full").touch()  # no folder for a cache
    arguments = ["benchmark", *tiny_arguments(tmp_path, **SETTINGS)]
    own = [{"FEWSTEP_CACHE": str(tmp_path / "full")}, {}]
    (code, _, errors), (other, _, quiet) = ended(started([arguments, arguments], own=own), 60)
    assert (code, other, quiet) == (2, 2, ""), quiet
    assert "cannot be written" in errors
    assert errors.count("\n") == 1
