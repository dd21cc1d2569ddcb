"""Disks that are full or cannot be written: one line, exit code 2, the earlier state intact, and later the same end.

Where a small file system can be mounted the faults are real; elsewhere those tests skip and the injected ones hold.
"""

import shutil
import subprocess

import pytest

from fewstep.files import remove, sha256_file


def snapshot(folder):
    """{file: sha256} of a run's finished stages."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for stage in ("teacher", "student", "eval", "report")
        for path in (folder / stage).rglob("*")
        if path.is_file()
    }


def refused(run, stage, fault=None):
    """The one line with which a command ends, with exit code 2."""
    code, _, err = run.make(stage, fault)
    assert code == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith("fewstep: error: ")
    return err


FAULTS = {
    "full_while_saving_a_checkpoint": "teacher",
    "full_while_logging": "teacher",
    "full_while_taking_scratch_space": "eval",
    "full_while_writing_images": "sample",
}
MORE_FAULTS = {
    "full_while_flushing": "teacher",
    "full_while_saving_a_model": "student",
    "full_while_copying_results": "eval",
}


@pytest.mark.parametrize("fault", [*FAULTS, *(pytest.param(fault, marks=pytest.mark.soak) for fault in MORE_FAULTS)])
def test_an_injected_full_disk_is_one_line_and_the_earlier_state_stays(whole_run, tmp_path, fault, survived):
    stage = (FAULTS | MORE_FAULTS)[fault]
    run = whole_run.before(stage, tmp_path)
    before = snapshot(run.folder)
    assert "No space left on device: free some space" in refused(run, stage, fault)
    assert snapshot(run.folder) == before
    assert not run.samples.exists()
    assert not [name for name in run.leftovers() if not name.startswith("digits/checkpoints")]
    if fault != "full_while_logging":  # as for the checkpoint
        assert run.make(stage)[0] == 0
        assert run.results(stage) == whole_run.results(stage)
    survived(f"full disk ({fault.replace('_', ' ').removeprefix('full ')})", 1, 1)


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kilobytes): a file system of that size, the same one each time; options may follow."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(kilobytes: int, *options: str):
        nonlocal mounted
        options = (f"size={kilobytes}k", *(["remount"] if mounted else []), *options)
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("no file system can be mounted here")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def check_sizes(whole_run, small_disk, sizes, survived):
    refusals = 0
    for stage, kilobytes in sizes:
        disk = small_disk(100_000)
        run = whole_run.before(stage, disk)
        used = int(subprocess.run(["du", "-sk", disk], capture_output=True, text=True, check=True).stdout.split()[0])
        small_disk(used + kilobytes)
        before = snapshot(run.folder)
        code, _, err = run.make(stage)
        if code != 0:
            assert (code, err.count("\n")) == (2, 1), (stage, kilobytes, err)
            assert "No space left on device" in err
            assert snapshot(run.folder) == before
            refusals += 1
            small_disk(100_000)
            code, _, err = run.make(stage)
        assert code == 0, (stage, kilobytes, err)
        assert run.results(stage) == whole_run.results(stage)
        for path in disk.iterdir():
            remove(path)
    survived("full disk of some size", refusals, refusals)
    return refusals


def test_small_disks_fill_up_and_with_more_space_the_end_is_the_same(whole_run, small_disk, survived):
    assert check_sizes(whole_run, small_disk, [("teacher", 3000)], survived) == 1


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_disks_of_many_sizes_fill_up_and_with_more_space_the_end_is_the_same(whole_run, small_disk, survived):
    sizes = [("teacher", 700 * n) for n in range(12)] + [("student", 700 * n) for n in range(12)]
    sizes += [("eval", 25 * n) for n in range(16)] + [("sample", 25 * n) for n in range(4)]
    assert check_sizes(whole_run, small_disk, sizes, survived) >= len(sizes) // 2


def test_a_disk_that_cannot_be_written_is_one_line(whole_run, small_disk):
    disk = small_disk(100_000)
    run = whole_run.before("eval", disk)
    before = snapshot(run.folder)
    small_disk(100_000, "ro")
    assert "Read-only file system: give a place that can be written" in refused(run, "eval")
    assert snapshot(run.folder) == before
    small_disk(100_000, "rw")


@pytest.mark.parametrize("place", ["checkpoints", "logs", "config.yaml"])
def test_what_stands_where_it_must_not_is_one_line(whole_run, tmp_path, place):
    run = whole_run.before("teacher", tmp_path)
    target = run.folder / place
    if target.is_dir():
        shutil.rmtree(target)
    if place == "config.yaml":
        target.unlink()
        (target / "x").mkdir(parents=True)
    else:
        target.write_text("mine")
    assert str(target) in refused(run, "teacher") or place == "config.yaml"
    assert (target / "x").is_dir() if place == "config.yaml" else target.read_text() == "mine"
    assert not (run.folder / "teacher").exists()


def test_a_limit_of_file_sizes_is_one_line(whole_run, tmp_path):
    run = whole_run.before("teacher", tmp_path)
    line = refused(run, "teacher", "limited_file_size")
    assert "File too large: raise the limit of file sizes (ulimit -f)" in line
    assert not (run.folder / "teacher").exists()
