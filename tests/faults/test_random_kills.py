"""Kill -9 at random moments of every stage: the same command goes on, and the end is that of a run never killed."""

import os
from pathlib import Path
from random import Random

import pytest

from faults.killing import STAGES, kill_at_random

SOAK_KILLS = int(os.environ.get("SOAK_KILLS", "200"))


def check(timed_run, tmp_path: Path, survived, stage: str, kills: int, seed: int) -> None:
    whole, seconds = timed_run
    outcome = kill_at_random(whole, stage, kills, seconds[stage], Random(f"{stage} {seed}"), tmp_path)
    survived(f"kill -9 in {stage}", outcome.injected, outcome.survived, outcome.lost, STAGES[stage])
    assert outcome.wrong == []
    assert outcome.injected == outcome.survived >= kills
    every = {"teacher": 4, "student": 3}.get(stage, 1)
    assert max(outcome.lost) <= every  # a log line may stand whose checkpoint was being written


@pytest.mark.parametrize("stage", ["teacher", "student", "eval", "sample"])
def test_two_kills_at_random_moments_change_nothing(timed_run, tmp_path, survived, stage):
    check(timed_run, tmp_path, survived, stage, kills=2, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("stage", STAGES)
def test_many_kills_at_random_moments_change_nothing(timed_run, tmp_path, survived, stage):
    check(timed_run, tmp_path, survived, stage, kills=-(-SOAK_KILLS // len(STAGES)), seed=1)
