"""Training images on the disk or streamed are those in memory, each once an epoch, after any interruption."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.files import read_json
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.feed import Batches
from fewstep.pipeline.data.stored import PIXELS, RECORD, PixelFile, in_memory, on_disk
from fewstep.pipeline.data.stream import StreamedData
from fewstep.pipeline.data.training import open_training
from fewstep.pipeline.training import randomness
from fewstep.pipeline.training.randomness import batch_indices

COUNTS = (40, 25, 36)  # rows of the files; a window of 30 has rows of two
TOTAL, WINDOW, BATCH = sum(COUNTS), 30, 24
NAMES = [f"train-{number:05}-of-00003.parquet" for number in range(3)]


def png(number: int) -> bytes:
    """An 8x8 image that tells its number."""
    pixels = np.full((8, 8), number // 256, np.uint8)
    pixels[:4] = number % 256
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, images: list[bytes], labels: list | None, names: list[str] | None = None) -> None:
    columns = {"image": pa.array([{"bytes": each, "path": None} for each in images])}
    table = pa.table(columns if labels is None else columns | {"label": pa.array(labels)})
    if names is not None:
        kind = {"names": names, "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": kind}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


@pytest.fixture
def folder(tmp_path):
    """Three files of numbered images with two classes."""
    (tmp_path / "set").mkdir()
    start = 0
    for name, count in zip(NAMES, COUNTS, strict=True):
        numbers = range(start, start + count)
        write(tmp_path / "set" / name, [*map(png, numbers)], [n % 2 for n in numbers], ["even", "odd"])
        start += count
    return tmp_path / "set"


def section(folder: Path, **settings) -> DataConfig:
    return DataConfig(source=f"parquet:{folder}", **settings)


def streamed(folder: Path, **settings) -> StreamedData:
    return StreamedData(section(folder, storage="stream", **{"shuffle_window": WINDOW} | settings))


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].int() + 256 * images[:, 0, 7, 0].int()).tolist()


def batches(data, part=slice(0, BATCH), workers=0, labelled=True, steps=100, seed=3) -> Any:
    return Batches(data.feed(seed, BATCH, labelled=labelled), part, steps, workers)


def read(given: Batches) -> None:
    """An epoch of batches."""
    for step in range(TOTAL // BATCH + 1):
        given.get(step)


def test_an_array_on_the_disk_is_the_tensor_in_memory_and_is_made_once(folder, tmp_path, capsys):
    memory, disk = in_memory(section(folder)), on_disk(section(folder, storage="disk"), tmp_path / "data")
    assert disk.provenance == memory.provenance
    assert (disk.shape, disk.class_names, disk.num_classes) == (memory.shape, memory.class_names, 2)
    assert disk.labels_sha256 == memory.labels_sha256
    order = torch.randperm(TOTAL)
    assert torch.equal(disk.take(order), memory.take(order))
    assert torch.equal(disk.images(90, 200), memory.images(90, 200))
    assert torch.equal(disk.some(2**20), memory.some(2**20))
    assert len(disk.some(64 * 10)) == 10
    one, two = batches(memory), batches(disk)
    for step in (0, 1, 2, 9, 4):
        for mine, theirs in zip(one.get(step), two.get(step), strict=True):
            assert torch.equal(mine, theirs)
        assert numbers(one.get(step)[0]) == batch_indices(3, TOTAL, BATCH, step).tolist()
    assert "data: writing the images" in capsys.readouterr().out
    on_disk(section(folder, storage="disk"), tmp_path / "data")
    assert "writing" not in capsys.readouterr().out


def test_the_order_of_an_epoch_is_drawn_once(folder):
    randomness._order.cache_clear()
    feed = in_memory(section(folder)).feed(3, BATCH, labelled=True)
    for step in range(8):  # of epochs 0 and 1
        feed.indices(step)
    assert randomness._order.cache_info().misses == 2


def test_a_source_that_changed_is_read_again_and_refused_where_its_images_are_others(folder, tmp_path, capsys):
    config = section(folder, storage="disk")
    kept = open_training(config, tmp_path / "data", None, checked=True).provenance
    os.utime(folder / NAMES[0], (1, 1))
    open_training(config, tmp_path / "data", kept, checked=True)
    assert capsys.readouterr().out.count("writing the images") == 2
    write(folder / NAMES[2], [png(7)] * COUNTS[2], [0] * COUNTS[2], ["even", "odd"])
    with pytest.raises(UserError, match="the images have changed since this run began"):
        open_training(config, tmp_path / "data", kept, checked=True)


def test_a_stream_whose_files_changed_is_refused_and_one_that_was_touched_is_not(folder, tmp_path):
    config = section(folder, storage="stream")
    kept = open_training(config, tmp_path, None, checked=True).provenance
    assert kept["sha256_of"] == "the names and bytes of the source's files"
    os.utime(folder / NAMES[0], (1, 1))
    open_training(config, tmp_path, kept, checked=True)
    write(folder / NAMES[2], [png(7)] * COUNTS[2], [0] * COUNTS[2], ["even", "odd"])
    with pytest.raises(UserError, match="the images have changed since this run began"):
        open_training(config, tmp_path, kept, checked=True)


def test_a_changed_byte_and_a_cut_array_are_named_and_an_interrupted_one_is_made_again(folder, tmp_path, monkeypatch):
    config, place = section(folder, storage="disk"), tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(
            "fewstep.pipeline.data.stored.write_json", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            on_disk(config, place)
    assert not place.exists()
    data = on_disk(config, place)
    pixels = bytearray((place / PIXELS).read_bytes())
    pixels[1000] ^= 1
    (place / PIXELS).write_bytes(pixels)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{PIXELS}: is corrupt .*; remove {place} to make it again"):
            on_disk(config, place)
        (place / PIXELS).write_bytes(pixels[:1000])
    with pytest.raises(UserError, match="was cut short"):
        data.take(torch.tensor([TOTAL - 1]))
    (place / RECORD).write_text((place / RECORD).read_text().replace("even", "eben"))
    with pytest.raises(UserError, match=f"{RECORD}: is corrupt"):
        on_disk(config, place)


def test_a_file_of_pixels_can_go_to_a_process_that_is_begun_anew(folder, tmp_path):
    pixels = on_disk(section(folder, storage="disk"), tmp_path / "data").pixels
    assert isinstance(pixels, PixelFile)
    made, given = pixels.__reduce__()
    again = made(*given)
    assert torch.equal(again.images(0, 5), pixels.images(0, 5))


def test_a_stream_has_every_row_once_an_epoch_shuffled_in_windows_with_the_files_in_other_orders(folder):
    data = streamed(folder)
    feed = data.feed(3, BATCH, labelled=True)
    order = torch.cat([feed.indices(step) for step in range(3 * TOTAL // BATCH + 1)]).tolist()
    epochs = [order[start : start + TOTAL] for start in (0, TOTAL, 2 * TOTAL)]
    starts = np.cumsum([0, *COUNTS])
    for epoch, seen in enumerate(epochs):
        assert sorted(seen) == list(range(TOTAL))
        plain = [row for file in feed.files(epoch) for row in range(starts[file], starts[file + 1])]
        for start in range(0, TOTAL, WINDOW):
            assert sorted(seen[start : start + WINDOW]) == sorted(plain[start : start + WINDOW])
            assert seen[start : start + WINDOW] != plain[start : start + WINDOW]
    assert len({tuple(feed.files(epoch)) for epoch in range(6)}) > 1
    other = data.feed(4, BATCH, labelled=True)
    assert other.indices(0).tolist() != order[:BATCH]


@pytest.mark.parametrize("window", [10, 30, 1000])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_parts_of_several_processes_are_the_batch_of_one_with_its_labels(folder, window, processes):
    data, size = streamed(folder, shuffle_window=window), BATCH // processes
    feed = data.feed(3, BATCH, labelled=True)
    each = [batches(data, slice(size * rank, size * (rank + 1))) for rank in range(processes)]
    for step in range(10):
        found = [part.get(step) for part in each]
        seen = numbers(torch.cat([images for images, _ in found]))
        assert seen == feed.indices(step).tolist()
        assert [int(label) for _, labels in found for label in labels] == [number % 2 for number in seen]


def test_a_stream_that_is_taken_up_at_any_step_goes_on_with_the_same_images(folder):
    data = streamed(folder)
    whole = batches(data)
    expected = [whole.get(step)[0].clone() for step in range(12)]
    for start in range(12):
        later = batches(data)
        assert all(torch.equal(later.get(step)[0], expected[step]) for step in range(start, min(start + 2, 12)))


@pytest.mark.parametrize("storage", ["disk", "stream"])
def test_processes_that_read_ahead_give_what_is_read_without_them(folder, tmp_path, storage):
    data = streamed(folder) if storage == "stream" else on_disk(section(folder, storage="disk"), tmp_path / "data")
    state = torch.get_rng_state()
    alone, helped = batches(data, steps=9), batches(data, steps=9, workers=2)
    for step in (0, 1, 2, 3, 4, 5, 6, 7, 8, 2, 3):
        for mine, theirs in zip(alone.get(step), helped.get(step), strict=True):
            assert torch.equal(mine, theirs)
    helped.close()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_the_same_line_from_another_process(folder, workers):
    write(folder / NAMES[1], [png(0)[:40]] * COUNTS[1], [0] * COUNTS[1], ["even", "odd"])
    with pytest.raises(UserError, match=r"\(train\), row \d+: is not a readable image") as stopped:
        read(batches(streamed(folder), workers=workers))
    row = int(str(stopped.value).partition("row ")[2].partition(":")[0])
    assert COUNTS[0] <= row < sum(COUNTS[:2])


def test_a_file_that_cannot_be_read_is_the_system_s_fault_also_from_another_process(tmp_path, monkeypatch):
    for number in range(BATCH):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / f"{number:03}.png").write_bytes(png(number))
    data = StreamedData(DataConfig(source=f"imagefolder:{tmp_path}", storage="stream"))
    assert numbers(batches(data, labelled=False).get(0)[0]) == data.feed(3, BATCH, labelled=False).indices(0).tolist()

    def refuse(*given):
        raise PermissionError(13, "Permission denied", "a.png")

    monkeypatch.setattr("fewstep.pipeline.data.decode.read_bounded", refuse)
    with pytest.raises(PermissionError) as stopped:
        batches(data, workers=1, labelled=False).get(0)
    assert (stopped.value.errno, stopped.value.filename) == (13, "a.png")


def test_a_process_that_is_killed_is_named(folder):
    feed = streamed(folder).feed(3, BATCH, labelled=True)
    killed: Any = SimpleNamespace(requests=feed.requests, reader=lambda request: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"data\.workers: 1: one of the processes that read ahead was killed"):
        Batches(killed, slice(0, BATCH), 9, workers=1).get(0)


def test_processes_that_read_ahead_end_with_the_one_they_read_for_whatever_ended_it(folder):
    code = f"""
from test_storage import batches, streamed
reading = batches(streamed({str(folder)!r}), workers=1)
reading.get(0)
try:
    raise ValueError
except ValueError as error:
    kept = error  # and with it all that was at work
"""
    there = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", code], env=there, timeout=60, check=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_ends_early_names_the_file_and_the_row(folder, workers):
    data = streamed(folder)
    write(folder / NAMES[1], [*map(png, range(20))], [0] * 20, ["even", "odd"])
    ended = rf"{NAMES[1]}: the stream ended early, after 20 of 25 rows: was the source changed\?"
    with pytest.raises(UserError, match=ended):
        read(batches(data, workers=workers))


def test_classes_of_a_stream_are_those_with_names_or_the_numbers_in_the_column(folder, tmp_path):
    assert (streamed(folder).num_classes, streamed(folder).class_names) == (2, ("even", "odd"))
    for name, labels in {"numbers": [0, 6, 2], "text": ["a", "b", "a"], "negative": [0, -1, 1]}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.parquet", [*map(png, range(3))], labels)
    (tmp_path / "none").mkdir()
    write(tmp_path / "none" / "train.parquet", [png(0)] * 3, None)
    assert streamed(tmp_path / "numbers").num_classes == 7
    assert streamed(tmp_path / "none").num_classes is None
    with pytest.raises(
        UserError, match=r"data\.label_column: 'label': .* integers .* string: set data\.storage to disk"
    ):
        streamed(tmp_path / "text").num_classes  # noqa: B018
    batches(streamed(tmp_path / "text"), labelled=False).get(0)
    with pytest.raises(UserError, match=r"row 1: has the label -1: not a class of 2"):
        batches(streamed(tmp_path / "negative")).get(0)


def test_choices_of_a_stream_are_of_its_first_window(folder):
    from fewstep.pipeline.data.choice import choice_images

    data = streamed(folder)
    assert max(numbers(choice_images(data.config, data))) < WINDOW
    assert len(choice_images(data.config, data)) == WINDOW // 5
    assert numbers(data.take(torch.tensor([50, 3, 77]))) == [50, 3, 77]
    images, labels = data.first(5)
    assert labels is not None
    assert (numbers(images), labels.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 0, 1, 0])


def test_a_data_set_on_the_hub_is_streamed_from_one_commit(folder, monkeypatch):
    import datasets
    import huggingface_hub

    class Info:
        sha = "c0ffee"

    asked, load = [], datasets.load_dataset

    def from_here(name, config, *, revision, streaming):
        asked.append((name, revision, streaming))
        files = [str(folder / each) for each in NAMES]
        found = load("parquet", data_files={"train": files}, streaming=streaming)
        found["train"].info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=rows)})
        return found

    rows = TOTAL
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision: Info)
    monkeypatch.setattr(datasets, "load_dataset", from_here)
    data = StreamedData(DataConfig(source="hub:someone/numbers", storage="stream", shuffle_window=WINDOW))
    assert asked == [("someone/numbers", "c0ffee", True)]
    assert data.provenance["sha256_of"] == "the commit on the hub"
    feed, all_of_it = data.feed(3, BATCH, labelled=True), batches(data)
    for step in (0, 1, 5, 3):
        assert numbers(all_of_it.get(step)[0]) == feed.indices(step).tolist()
    rows = TOTAL + 9
    longer = StreamedData(DataConfig(source="hub:someone/numbers", storage="stream"))
    with pytest.raises(UserError, match=rf"the stream ended early, after {TOTAL} of {TOTAL + 9} rows"):
        batches(longer).get(0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits as parquet files, of which a part is another split."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    bunch: Any = load_digits()
    images = []
    for pixels in np.round(bunch["images"] * (255 / 16)).astype(np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append(buffer.getvalue())
    parts = {"train-00000-of-00002": (0, 700), "train-00001-of-00002": (700, 1400), "test": (1400, 1797)}
    for name, (start, stop) in parts.items():
        labels = bunch["target"][start:stop].tolist()
        write(folder / f"{name}.parquet", images[start:stop], labels, list("0123456789"))
    return folder


@pytest.mark.timeout(600)
def test_a_run_from_the_disk_is_the_run_from_memory_and_takes_its_place(digits, tiny, tmp_path, capsys):
    source = {"data__source": f"parquet:{digits}"}
    for name in ("memory", "disk"):
        assert main(["run", *tiny(tmp_path, name=name, data__storage=name, **source)]) == 0
    for file in ("teacher/unet/diffusion_pytorch_model.safetensors", "eval/grids/real.png", "eval/neighbours.json"):
        assert (tmp_path / "disk" / file).read_bytes() == (tmp_path / "memory" / file).read_bytes()
    facts = [read_json(tmp_path / name / "data.json") for name in ("memory", "disk")]
    assert facts[0].pop("config") != facts[1].pop("config")
    assert facts[0] == facts[1]
    kept = read_json(tmp_path / "memory" / "data.json")  # as a version without the keys wrote it
    for key in ("storage", "shuffle_window", "workers"):
        del kept["config"][key]
    (tmp_path / "memory" / "data.json").write_text(json.dumps(kept))
    for storage in ("memory", "disk"):
        capsys.readouterr()
        assert main(["run", *tiny(tmp_path, name="memory", data__storage=storage, **source)]) == 0
        said = capsys.readouterr().out
        assert said.count("up to date") == 3
        assert "data: reading" not in said


@pytest.mark.timeout(600)
def test_a_run_from_a_stream_and_what_its_teacher_is_made_again_for(digits, tiny, tmp_path, capsys):
    source = {"data__source": f"parquet:{digits}", "data__storage": "stream", "data__shuffle_window": 300}
    given = source | {"data__reference_split": "test", "teacher__class_conditional": True}
    assert main(["run", *tiny(tmp_path, **given)]) == 0
    run = tmp_path / "digits"
    assert "reference: 397 real images (test)" in capsys.readouterr().out
    assert read_json(run / "data.json")["count"] == 1400
    inputs = read_json(run / "teacher" / "manifest.json")["inputs"]
    assert inputs["data.shuffle_window"] == 300
    assert main(["run", *tiny(tmp_path, **given, data__workers=0)]) == 0
    assert capsys.readouterr().out.count("up to date") == 3
    assert main(["train-teacher", *tiny(tmp_path, **given | {"data__shuffle_window": 301})]) == 0
    assert "teacher: data.shuffle_window 300 -> 301: trained again" in capsys.readouterr().out


def test_a_stream_that_ends_in_training_is_one_line_and_exit_code_2(digits, tiny, tmp_path, capsys, monkeypatch):
    shutil.copytree(digits, tmp_path / "digits-set")
    source = {"data__source": f"parquet:{tmp_path / 'digits-set'}", "data__storage": "stream"}
    monkeypatch.setattr(StreamedData, "_counted", lambda self: [700, 1 << 12])
    assert (
        main(["train-teacher", *tiny(tmp_path, **source, data__reference_split="test", teacher__train__kimg=6.4)]) == 2
    )
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "train-00001-of-00002.parquet: the stream ended early, after 700 of 4,096 rows" in line


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_to_all_processes_ends_training_after_its_step_and_leaves_none(digits, tiny, tmp_path, number, code):
    source = {"data__source": f"parquet:{digits}", "data__storage": "stream", "data__reference_split": "test"}
    command = [sys.executable, "-m", "fewstep", "train-teacher", *tiny(tmp_path, **source, teacher__train__kimg=640)]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if list(tmp_path.glob("digits/checkpoints/teacher/step-*/MANIFEST.json")):
            break
        time.sleep(0.1)
    if number == signal.SIGKILL:
        run.kill()  # alone: the others have to notice
    else:
        os.killpg(run.pid, number)
    said, errors = run.communicate(timeout=60)
    assert run.returncode == code
    assert ("stopped after step" in said) == (number != signal.SIGKILL)
    assert "Traceback" not in errors
    for _ in range(150):
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process is left after 15 seconds")


PASS = """
import multiprocessing, os, re, sys, time
from pathlib import Path
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.feed import Batches
from fewstep.pipeline.data.stream import StreamedData
data = StreamedData(DataConfig(source=f"parquet:{sys.argv[1]}", storage="stream"))
count, size, workers = len(data), 1000, int(sys.argv[2])
batches = Batches(data.feed(0, size, labelled=True), slice(0, size), count // size, workers)
clock, seen, peaks = time.time(), 0, []
for step in range(count // size):
    images, labels = batches.get(step)
    seen += len(images)
    if step % 100 == 0:  # ru_maxrss of a process that was begun by a larger one is that one's
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        said = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        peaks += [int(re.search(r"VmHWM:\\s+(\\d+)", each)[1]) / 1024 for each in said]
seconds = time.time() - clock
batches.close()
print(seen, seen / seconds, max(peaks), len(pids))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
def test_two_million_images_pass_in_flat_memory(tmp_path, workers):
    images = [png(number) for number in range(1000)] * 500
    for number in range(4):
        write(tmp_path / f"train-{number:05}-of-00004.parquet", images, [*range(10)] * 50_000)
    command = [sys.executable, "-c", PASS, str(tmp_path), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen, rate, peak, processes = map(float, done.stdout.split())
    print(f"{rate:,.0f} images/s, at most {peak:.0f} MB in each of {processes:.0f} processes")
    assert seen == 2_000_000
    assert peak < 1500
