"""A bad source, column or image is one line that names it, exit code 2, and nothing is written."""

import io
import os
import struct
import subprocess
import sys
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from fewstep.errors import UserError
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.load import load_data


def png(size=(8, 8), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size, 7 if len(Image.new(mode, (1, 1)).getbands()) == 1 else (7,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def bomb():
    """A PNG whose header promises 20,000 x 20,000 pixels."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def parquet(folder, columns, features=None):
    path = folder / "mine.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return f"parquet:{path}"


def folder_of(folder, **images):
    for name, content in images.items():
        (folder / f"{name}.png").write_bytes(content)
    return f"imagefolder:{folder}"


def truncated():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()[:1500]


def deep():
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def transparent():
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 128)).save(buffer, "PNG")
    return buffer.getvalue()


# name: (how to make the source in a folder, other settings, what the line says)
FAULTS = {
    "missing folder": (
        lambda at: f"imagefolder:{at}/none",
        {},
        ["data.source", "/none'", "no such file or folder"],
    ),
    "missing parquet": (
        lambda at: f"parquet:{at}/no.parquet",
        {},
        ["data.source", "no.parquet'", "no such file"],
    ),
    "empty folder": (lambda at: f"imagefolder:{at}", {}, ["data.source", "imagefolder:", "holds no images"]),
    "empty parquet folder": (
        lambda at: f"parquet:{at}",
        {},
        ["data.source", "parquet:", "holds no .parquet files"],
    ),
    "a file for a folder": (
        lambda at: (folder_of(at, a=png()), f"imagefolder:{at}/a.png")[1],
        {},
        ["data.source", "a.png'", "is not a folder"],
    ),
    "only text": (
        lambda at: ((at / "a.txt").write_text("x"), f"imagefolder:{at}")[1],
        {},
        ["imagefolder:", "no image"],
    ),
    "no such split": (
        lambda at: folder_of(at, a=png()),
        {"split": "validation"},
        ["data.split: 'validation'", "has no such split, but train"],
    ),
    "no image column": (
        lambda at: parquet(at, {"text": ["a"], "label": [1]}),
        {},
        ["data.source", "mine.parquet'", "has no image column; its columns: text, label"],
    ),
    "no such column": (
        lambda at: parquet(at, {"image": [png()]}),
        {"image_column": "picture"},
        ["data.image_column: 'picture'", "no such column; its columns: image"],
    ),
    "a column of numbers": (
        lambda at: parquet(at, {"image": [png()], "label": [1]}),
        {"image_column": "label"},
        ["data.image_column: 'label'", "not images"],
    ),
    "two image columns": (
        lambda at: parquet(
            at,
            {"a": [{"bytes": png(), "path": None}], "b": [{"bytes": png(), "path": None}]},
            datasets.Features({"a": datasets.Image(), "b": datasets.Image()}),
        ),
        {},
        ["data.image_column", "several image columns: set it to one of a, b"],
    ),
    "no such label column": (
        lambda at: parquet(at, {"image": [png()], "kind": [1]}),
        {"label_column": "label"},
        ["data.label_column: 'label'", "other columns: kind"],
    ),
    "a label that is none": (
        lambda at: parquet(at, {"image": [png(), png()], "kind": [1, -1]}),
        {"label_column": "kind"},
        ["data.label_column: 'kind'", "row 1 has the label -1"],
    ),
    "no rows": (
        lambda at: parquet(
            at,
            {"image": [], "label": []},
            datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
        ),
        {},
        ["data.source", "mine.parquet'", "holds no images"],
    ),
    "a null image": (
        lambda at: parquet(at, {"image": [png(), None]}),
        {},
        ["mine.parquet (train), row 1", "holds no image"],
    ),
    "not a parquet file": (
        lambda at: ((at / "a.parquet").write_bytes(b"nothing of the kind"), f"parquet:{at}/a.parquet")[1],
        {},
        ["a.parquet", "cannot be read"],
    ),
    "an image of text": (
        lambda at: folder_of(at, a=png(), b=b"hello"),
        {},
        ["/b.png", "is not a readable image (no known image format)"],
    ),
    "an empty image": (lambda at: folder_of(at, a=b""), {}, ["/a.png", "is not a readable image"]),
    "a cut image": (
        lambda at: folder_of(at, a=truncated()),
        {},
        ["/a.png", "is not a readable image", "truncated"],
    ),
    "a cut image in parquet": (
        lambda at: parquet(at, {"image": [truncated()]}),
        {},
        ["mine.parquet (train), row 0", "is not a readable image"],
    ),
    "too many pixels": (lambda at: folder_of(at, a=bomb()), {}, ["/a.png", "pixels: make the image smaller"]),
    "mixed sizes": (
        lambda at: folder_of(at, a=png(), b=png(), c=png((9, 9))),
        {},
        ["data.image_size", "a.png is 8x8", "c.png is 9x9", "set it"],
    ),
    "mixed modes": (
        lambda at: folder_of(at, a=png(), b=png(mode="RGB")),
        {},
        ["data.channels", "a.png is grey", "b.png is colour", "set it to 1 or 3"],
    ),
    "mixed modes, sizes set": (
        lambda at: folder_of(at, a=png(), b=png((9, 9), "RGB")),
        {"image_size": 8},
        ["data.channels", "a.png is grey", "b.png is colour"],
    ),
    "not square": (
        lambda at: folder_of(at, a=png((8, 10))),
        {},
        ["data.image_size", "a.png is 8x10, not square"],
    ),
    "sixteen bits": (lambda at: folder_of(at, a=deep()), {}, ["/a.png", "16 or more bits", "save it with 8"]),
    "transparent": (
        lambda at: folder_of(at, a=transparent()),
        {"channels": 3},
        ["/a.png", "transparent pixels: put it on a background"],
    ),
    "unreachable hub": (
        lambda at: "hub:no-such-owner/no-such-set",
        {},
        ["data.source: 'hub:no-such-owner/no-such-set'", "parquet:PATH or imagefolder:PATH"],
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_in_the_data_is_one_line_that_names_it(tmp_path, capfd, fault):
    make, settings, says = FAULTS[fault]
    folder = tmp_path / "data"
    folder.mkdir()
    config = DataConfig(source=make(folder), **settings)
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    with pytest.raises(UserError) as caught:
        load_data(config, config.split)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_reference_split_names_its_key(tmp_path):
    config = DataConfig(source=folder_of(tmp_path, a=png()), reference_split="test")
    with pytest.raises(UserError, match=r"^data\.reference_split: 'test': .* has no such split, but train"):
        load_data(config, "test")


@pytest.mark.parametrize("fault", ["missing folder", "no image column", "a cut image", "mixed sizes"])
def test_the_command_says_it_in_one_line_and_leaves_nothing(tmp_path, capsys, fault):
    make, settings, says = FAULTS[fault]
    folder = tmp_path / "data"
    folder.mkdir()
    arguments = [
        "run",
        "mnist",
        "--data.image_size=null",
        "--data.channels=null",
        "--data.reference_split=null",
    ]
    arguments += [f"--data.source={make(folder)}", f"--out={tmp_path / 'runs'}", "--device=cpu"]
    arguments += [f"--data.{key}={value}" for key, value in settings.items()]
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("fewstep: error: ")
    assert err.count("\n") == 1
    for part in says:
        assert part in err
    assert [path.name for path in tmp_path.glob("runs/**/*") if path.is_file() and path.name != ".lock"] == []


def test_a_home_that_cannot_be_written_is_no_hindrance_to_local_data(tmp_path):
    source = parquet(tmp_path, {"image": [png()]})
    (tmp_path / "home").write_text("a file: no folder can be made below it")
    code = (
        "from fewstep.pipeline.config.schema import DataConfig; from fewstep.pipeline.data.load import load_data;"
        f"print(len(load_data(DataConfig(source={source!r}), 'train').images))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
