"""Two processes read images from the disk and from a stream as one process does."""

import io
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_arguments
from PIL import Image
from sklearn.datasets import load_digits

from fewstep.pipeline.cli.main import main
from several import SLICES, ended, losses, started

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as PNGs in two parquet files; a third one is that of another split."""
    folder = tmp_path_factory.mktemp("files")
    pixels, labels = load_digits(return_X_y=True)
    for part in range(2):
        images = []
        for image in pixels.reshape(-1, 8, 8)[part::2]:
            buffer = io.BytesIO()
            Image.fromarray((image * 15.9375).astype("uint8")).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        columns = {"image": pa.array(images), "label": pa.array(labels[part::2])}
        pq.write_table(pa.table(columns), folder / f"train-{part:05}-of-00002.parquet")
    shutil.copyfile(folder / "train-00000-of-00002.parquet", folder / "test-00000-of-00001.parquet")
    return folder


STREAM = {"data__storage": "stream", "data__shuffle_window": 300, "data__workers": 1, "data__reference_split": "test"}


@pytest.mark.parametrize("settings", [{"data__storage": "disk"}, STREAM])
def test_two_processes_train_as_one_does(files, tmp_path, settings):
    settings = SLICES | {"data__source": f"parquet:{files}"} | settings
    arguments = ["train-teacher", *tiny_arguments(tmp_path / "two", **settings)]
    (code, _, errors), (other, _, quiet) = ended(started([arguments, arguments]))
    assert (code, other, quiet) == (0, 0, ""), errors + quiet
    assert main(["train-teacher", *tiny_arguments(tmp_path / "one", **settings)]) == 0
    traces = [losses(tmp_path / name / "digits") for name in ("one", "two")]
    assert len(traces[0]) == 20
    assert traces[1] == pytest.approx(traces[0], rel=1e-5)
