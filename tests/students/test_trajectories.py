"""Trajectories on disk: the same points back, the right ones taken, and mapped instead of read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.students import trajectories
from fewstep.students.trajectories import Trajectories, read_trajectories, shard_path, write_record, write_shard

SIGMAS = [80.0, 2.0, 0.5, 0.0020000000949949026]


def written(folder: Path, points: Tensor, size: int) -> Trajectories:
    for number, shard in enumerate(points.split(size)):
        write_shard(shard_path(folder, number), shard)
    write_record(folder, len(points), SIGMAS)
    return read_trajectories(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_points_come_back_from_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    monkeypatch.setattr(trajectories, "SHARD", 3)
    points = torch.randn((8, 4, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    made = written(tmp_path, points, 3)
    assert (len(made), list(made.sigmas), len(made.shards)) == (8, SIGMAS, 3)
    assert all(shard.dtype == dtype for shard in made.shards)
    index, level = torch.tensor([7, 0, 3, 2, 7]), torch.tensor([0, 1, 2, 0, 3])
    with torch.autocast("cpu", torch.bfloat16):  # as a training in bf16 calls it
        start, end = made.take(index, level)
    assert torch.equal(start, points[index, level].float())
    assert torch.equal(end, points[index, -1].float())
    assert start.dtype == end.dtype == torch.float32
    assert all(torch.equal(made.ends(number), points[:number, -1].float()) for number in (1, 3, 4, 8))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is mapped on Linux alone")
def test_shards_are_mapped_and_not_read(tmp_path: Path):
    made = written(tmp_path, torch.zeros(16, 4, 1, 64, 64), 1000)
    address = made.shards[0].data_ptr()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    assert any(low <= address < high for low, high in spans)


def test_a_record_of_another_form_is_refused(tmp_path: Path):
    (tmp_path / "trajectories.json").write_text('{"number": "8", "sigmas": []}')
    with pytest.raises(UserError, match=r"trajectories\.json: is not of the form"):
        read_trajectories(tmp_path)
