"""Checkpoints: whole, verified, and the last good one is never lost."""

import json
import os
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fewstep import files
from fewstep.errors import UserError
from fewstep.pipeline.training.checkpoint import (
    MANIFEST,
    TrainingState,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from fewstep.pipeline.training.levels import BINS, LevelLosses

HASH = "c0ffee"
TENSORS = ("objective.safetensors", "ema.safetensors", "optimizer.safetensors")


def state(seed, steps=2):
    """A trained state: weights, buffers, an average, AdamW's moments, losses not logged yet."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, foreach=True)
    average = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    for _ in range(steps):
        network(torch.randn(4, 1, 5, 5)).square().mean().backward()
        optimizer.step()
    levels = LevelLosses()
    levels.add([seed / 3] * BINS, [1.0] * BINS)
    losses = [0.1, 1 / 3] * steps
    return TrainingState(objective=network, ema=average, optimizer=optimizer, losses=losses, levels=levels)


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of steps 4 and 8."""
    for step in (4, 8):
        save_checkpoint(tmp_path, step, state(step), HASH, keep=2)
    return tmp_path


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def test_a_round_trip_is_exact_to_the_bit(tmp_path):
    saved, loaded = state(1), state(2, steps=0)
    path = save_checkpoint(tmp_path, 7, saved, HASH, keep=2)
    assert load_checkpoint(path, loaded) == 7
    for mine, theirs in ((saved.objective, loaded.objective), (saved.ema, loaded.ema)):
        mine, theirs = mine.state_dict(), theirs.state_dict()
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    before, after = saved.optimizer.state_dict(), loaded.optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for index, entries in before["state"].items():
        assert entries.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, after["state"][index][name]) for name, value in entries.items())
    assert loaded.losses == saved.losses
    assert loaded.levels == saved.levels


def test_it_holds_safetensors_and_json_and_nothing_else(two):
    for path in list_checkpoints(two):
        assert sorted(file.name for file in path.iterdir()) == sorted((MANIFEST, *TENSORS))


def spoil_by_deleting(path, other):
    path.unlink()


def spoil_by_emptying(path, other):
    path.write_bytes(b"")


def spoil_by_truncating(path, other):
    path.write_bytes(path.read_bytes()[:-20])


def spoil_by_flipping(path, other):
    flip(path)


def spoil_by_swapping(path, other):
    shutil.copy(other, path)


SPOIL = [spoil_by_deleting, spoil_by_emptying, spoil_by_truncating, spoil_by_flipping, spoil_by_swapping]


@pytest.mark.parametrize("name", [*TENSORS, MANIFEST])
@pytest.mark.parametrize("spoil", SPOIL, ids=lambda spoil: spoil.__name__.removeprefix("spoil_by_"))
def test_a_spoiled_file_is_named_and_the_checkpoint_before_it_is_taken(two, spoil, name):
    bad, good = two / "step-000000008", two / "step-000000004"
    spoil(bad / name, good / name)
    with pytest.raises(UserError) as named:
        load_checkpoint(bad, state(0))
    assert str(bad / name) in str(named.value)
    assert "step" in str(named.value)
    assert "\n" not in str(named.value)
    said = []
    assert latest_checkpoint(two, HASH, said.append) == good
    assert len(said) == 1
    assert said[0].startswith("WARNING")
    assert str(bad / name) in said[0]


def test_swapped_folders_are_noticed(two):
    (two / "step-000000008").rename(two / "step-000000009")
    with pytest.raises(UserError, match="corrupt"):
        verify_checkpoint(two / "step-000000009")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_manifest_is_named(tmp_path, place, bit):
    path = tmp_path / "step-000000004"
    if not path.exists():
        save_checkpoint(tmp_path, 4, state(4), HASH, keep=2)
    sound = (path / MANIFEST).read_bytes()
    data = bytearray(sound)
    data[place % len(data)] ^= 1 << bit
    try:
        (path / MANIFEST).write_bytes(data)
        with pytest.raises(UserError, match=MANIFEST):
            verify_checkpoint(path)
    finally:
        (path / MANIFEST).write_bytes(sound)


def test_when_none_is_good_training_does_not_start_anew_in_silence(two):
    for path in list_checkpoints(two):
        flip(path / "ema.safetensors")
    newest = re.escape(str(two / "step-000000008" / "ema.safetensors"))
    why = rf"holds no good checkpoint \(the newest: {newest}: is corrupt \(checkpoint of step 8\)"
    with pytest.raises(UserError, match=why):
        latest_checkpoint(two, HASH, lambda text: None)


def test_corrupt_checkpoints_of_later_steps_do_not_take_the_places_of_good_ones(two):
    save_checkpoint(two, 12, state(12), HASH, keep=3)
    flip(two / "step-000000012" / "ema.safetensors")  # training goes on at step 8
    save_checkpoint(two, 9, state(9), HASH, keep=2)
    assert [path.name for path in list_checkpoints(two)] == ["step-000000008", "step-000000009"]


def test_another_configuration_is_refused_in_one_line(two):
    with pytest.raises(UserError, match="was made by another configuration; go back") as refused:
        latest_checkpoint(two, "beef", lambda text: None)
    assert "\n" not in str(refused.value)
    assert str(two / "step-000000008") in str(refused.value)


def test_a_checkpoint_of_an_earlier_form_is_refused_in_one_line(tmp_path):
    path = save_checkpoint(tmp_path, 4, state(4), HASH, keep=2) / MANIFEST
    earlier = {key: value for key, value in json.loads(path.read_text()).items() if key != "levels"}
    files.write_json(path, files.sealed(earlier))
    with pytest.raises(UserError, match=r"holds no good checkpoint .* it has no 'levels'.* start this stage anew"):
        latest_checkpoint(tmp_path, HASH, lambda text: None)


def test_without_checkpoints_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "absent", HASH, lambda text: None) is None
    assert latest_checkpoint(tmp_path, HASH, lambda text: None) is None


@pytest.mark.parametrize(("keep", "kept"), [(1, [12, 16]), (2, [12, 16]), (3, [8, 12, 16])])
def test_at_least_two_are_kept(tmp_path, keep, kept):
    for step in (4, 8, 12, 16):
        save_checkpoint(tmp_path, step, state(step), HASH, keep)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{step:09d}" for step in kept]


def test_what_a_kill_left_behind_is_not_a_checkpoint(two):
    for name in (".step-000000012.new", "step-12", "notes"):
        (two / name).mkdir()
    (two / ".step-000000012.new" / TENSORS[0]).write_bytes(b"half")
    assert [path.name for path in list_checkpoints(two)] == ["step-000000004", "step-000000008"]
    assert latest_checkpoint(two, HASH, lambda text: None) == two / "step-000000008"
    save_checkpoint(two, 12, state(12), HASH, keep=2)
    assert not (two / ".step-000000012.new").exists()


def count_writes(monkeypatch, tmp_path):
    calls = []
    for name in ("fsync", "rename", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *given, real=real: (calls.append(1), real(*given))[1])
    save_checkpoint(tmp_path / "counted", 8, state(8), HASH, keep=2)
    monkeypatch.undo()
    return len(calls)


def test_a_save_cut_off_at_any_flush_or_rename_loses_nothing(tmp_path, monkeypatch):
    total = count_writes(monkeypatch, tmp_path)
    assert total >= 8
    for cut in range(total):
        folder, calls = tmp_path / str(cut), []
        save_checkpoint(folder, 4, state(4), HASH, keep=2)

        def stop(real, *given, calls=calls, cut=cut):
            calls.append(1)
            if len(calls) > cut:  # from here on nothing reaches the disk, as after a kill
                raise SystemExit(137)
            return real(*given)

        for name in ("fsync", "rename", "replace"):
            real = getattr(os, name)
            monkeypatch.setattr(files.os, name, lambda *given, real=real, stop=stop: stop(real, *given))
        with pytest.raises(SystemExit):
            save_checkpoint(folder, 8, state(8), HASH, keep=2)
        monkeypatch.undo()
        found = latest_checkpoint(folder, HASH, pytest.fail)
        assert found is not None
        assert json.loads((found / MANIFEST).read_text())["step"] in (4, 8)
