"""Files are complete or absent, whatever cuts a write off."""

import errno
import os

import pytest

from fewstep import files
from fewstep.errors import UserError


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(*arguments):
    raise SystemExit(137)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    for value in ({"x": 1}, {"x": [1.5, None, "é"]}):
        files.write_json(path, value)
        assert files.read_json(path) == value
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    files.write_bytes(tmp_path / "new", b"x")
    (tmp_path / "usual").write_bytes(b"x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_bytes(path, b"old")
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": value})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json([value])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'x': 1}"])
def test_malformed_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: is not valid JSON") as error:
        files.read_json(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        files.read_json(tmp_path / "b.json")


def test_equal_values_have_equal_hashes(tmp_path):
    assert files.sha256_json({"a": 1, "b": [2, None]}) == files.sha256_json({"b": [2, None], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})
    (tmp_path / "f").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_sealed_value_is_read_back_and_no_change_to_it_goes_unseen(tmp_path):
    path, value = tmp_path / "a.json", {"b": [0.1, 1e-9], "a": {8: 1, 64: 2}, "sha256": "of an earlier write"}
    files.write_json(path, files.sealed(value))
    assert files.read_sealed(path) == {"b": [0.1, 1e-9], "a": {"8": 1, "64": 2}}
    text = path.read_text()
    for at in (text.index("0.1"), text.index('"8"') + 1, text.index('"sha256": "') + 11):
        path.write_text(text[:at] + ("2" if text[at] != "2" else "3") + text[at + 1 :])
        with pytest.raises(UserError, match=r"is corrupt \(its own sha256 differs\); make it again"):
            files.read_sealed(path, {}, "make it again")
    files.write_json(path, {"a": 1})  # of a version without seals
    assert files.read_sealed(path) == {"a": 1}


def make(target, content):
    with files.staged_folder(target) as stage:
        (stage / "deep").mkdir()
        (stage / "deep" / "file").write_text(content)


def stop_half_way(target, fault):
    with files.staged_folder(target) as stage:
        (stage / "half").write_text("half")
        raise fault


def content(target):
    return (target / "deep" / "file").read_text()


def test_a_folder_takes_its_place_whole(tmp_path):
    target = tmp_path / "not yet there" / "out"
    for text in ("one", "two"):
        make(target, text)
        assert content(target) == text
    assert [entry.name for entry in target.parent.iterdir()] == ["out"]


def test_a_failure_while_filling_leaves_the_earlier_folder_alone(tmp_path):
    target = tmp_path / "out"
    make(target, "old")
    for fault in (KeyboardInterrupt, SystemExit, RuntimeError):
        with pytest.raises(fault):
            stop_half_way(target, fault)
    assert content(target) == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_at_the_last_flush_leaves_the_earlier_folder_alone(tmp_path, monkeypatch):
    target = tmp_path / "out"
    make(target, "old")
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(target, "new")
    assert content(target) == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_staging_folder_of_a_kill_goes_when_the_folder_is_looked_at(tmp_path):
    make(tmp_path / "out", "old")
    (tmp_path / ".out.new").mkdir()
    files.restore_folder(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert content(tmp_path / "out") == "old"


def test_a_sweep_takes_what_writes_left_and_spares_what_others_may_be_writing(tmp_path):
    for name in (".a.json.abcd1234.tmp", ".b.json.abcd1234.tmp", ".mine.tmp"):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / ".a.json.abcd1234.tmp", (1e9, 1e9))
    files.sweep(tmp_path, older_than=3600)
    assert {path.name for path in tmp_path.iterdir()} == {".b.json.abcd1234.tmp", ".mine.tmp"}
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


def test_a_staging_folder_left_by_a_kill_is_swept_by_the_next_call(tmp_path):
    target = tmp_path / "out"
    with files.staged_folder(tmp_path / "other") as stage:
        leftover = stage.with_name(stage.name.replace("other", "out"))
    leftover.mkdir()
    (leftover / "half").write_text("half")
    make(target, "new")
    assert content(target) == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "out"]
    assert not (target / "half").exists()


@pytest.mark.parametrize("survivor", ["restore", "next call"])
def test_a_kill_between_the_two_renames_is_repaired(tmp_path, monkeypatch, survivor):
    target, rename = tmp_path / "out", os.rename
    make(target, "old")
    calls = []

    def killed_at_the_second(source, place):
        calls.append(place)
        killed() if len(calls) == 2 else rename(source, place)

    monkeypatch.setattr(files.os, "rename", killed_at_the_second)
    with pytest.raises(SystemExit):
        make(target, "new")
    monkeypatch.undo()
    assert not target.exists()
    if survivor == "restore":
        files.restore_folder(target)
        assert content(target) == "old"
    else:
        make(target, "newer")
        assert content(target) == "newer"
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_kill_before_the_old_folder_is_removed_keeps_the_new_one(tmp_path, monkeypatch):
    target = tmp_path / "out"
    make(target, "old")
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda path, **options: killed() if path.exists() else None)
        with pytest.raises(SystemExit):
            make(target, "new")
    files.restore_folder(target)
    assert content(target) == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
