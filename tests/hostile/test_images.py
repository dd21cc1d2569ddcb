"""Images that are none, that lie about their size, or that are of another kind than their name says."""

import io
import os
import struct
import tracemalloc
import zlib

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.errors import UserError
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.decode import Decoder, pillow_warnings
from fewstep.pipeline.data.load import load_data

MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"II*\x00", b"BM", b"P6 9 9 255 ", b"")
MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"II*\x00", b"BM", b"P6 9 9 255 ", b"")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")


def encoded(form, mode="RGB", size=(40, 40), **options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA").convert("RGB").convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def png(width, height, depth=8, colour=0, rows=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def decode(data, size=8):
    with pillow_warnings():
        return Decoder(image_size=size, channels=3).decode("image", data)


@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"II*\x00", b"BM", b"P6 9 9 255 "]
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_after_any_format_s_mark_cost_one_line(borne, data, mark):
    with borne():
        assert decode(mark + data).shape == (8, 8, 3)


@pytest.mark.parametrize("form", FORMATS)
def test_an_image_cut_anywhere_costs_one_line_or_is_read_whole(form, borne):
    whole = encoded(form)
    assert decode(whole).shape == (8, 8, 3)
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        with borne():
            assert decode(whole[:place]).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "data",
    [
        png(20_000, 20_000),
        png(2**31 - 1, 2**31 - 1),
        png(0, 0),
        png(1, 60_000, rows=b"\0\0" * 60_000),
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(9),
        b"P6 100000 100000 255\n",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=["png of 400 megapixels", "png of 2^62", "png of none", "png to stretch", "gif", "ppm", "bmp"],
)
def test_an_image_of_enormous_size_is_refused_before_memory_is_taken(refused, data):
    tracemalloc.start()
    try:
        with refused():
            decode(data, size=4000)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "P"), ("GIF", "P"), ("JPEG", "CMYK"), ("PNG", "1"), ("TIFF", "LAB")]
)
def test_palettes_inks_and_bits_become_colour(form, mode, borne):
    with borne():
        assert decode(encoded(form, mode)).dtype == np.uint8


def test_of_an_animation_the_first_frame_is_taken():
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (255, 0, 128)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode(buffer.getvalue()).min() == 255


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pixels_are_refused(mode, refused):
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "TIFF")
    with refused("16 or more bits"):
        decode(buffer.getvalue())


def test_postscript_under_an_image_s_name_starts_no_interpreter(refused, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("started a program"))
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file\nshowpage\n"
    with refused("no known image format"):
        decode(page)


def test_an_image_under_another_format_s_name_is_read_by_its_content(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("PNG", size=(8, 8)))
    assert len(load_data(DataConfig(source=f"imagefolder:{tmp_path}"), "train").images) == 1


def test_a_pipe_or_a_folder_named_as_an_image_is_refused_without_waiting(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with refused("a file is needed"):
            decode(tmp_path / name)


def test_an_image_file_of_any_length_is_not_read_whole(tmp_path, refused):
    with open(tmp_path / "long.png", "wb") as file:
        file.truncate(2**40)
    with refused("is longer than"):
        decode(tmp_path / "long.png")


PAR = b"PAR1"


@pytest.mark.parametrize("data", [b"", PAR, PAR + bytes(64) + PAR, b"PAR1\xff\xff\xff\x7fPAR1", os.urandom(200)])
def test_a_parquet_file_that_is_none_is_one_line(tmp_path, refused, data):
    (tmp_path / "x.parquet").write_bytes(data)
    with refused("x.parquet"):
        load_data(DataConfig(source=f"parquet:{tmp_path}/x.parquet"), "train")


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [{"bytes": {"deep": [[1]]}, "path": None}]},
        {"image": [[b"a"], [b"b"]]},
        {"image": [b"junk"]},
        {"image": [{"bytes": b"", "path": "x"}]},
        {"image": [{"bytes": None, "path": None}]},
        {"image": [1.5]},
        {"image": [None]},
        {"image": [{"bytes": encoded("PNG", size=(8, 8))}], "label": [[1]]},
    ],
)
def test_junk_in_a_column_of_a_parquet_file_is_one_line(tmp_path, borne, columns):
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "x.parquet")
    with borne():
        load_data(DataConfig(source=f"parquet:{tmp_path}/x.parquet"), "train")


def test_a_parquet_row_that_names_a_file_does_not_get_it_read(tmp_path, refused):
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded("PNG", size=(8, 8)))
    (tmp_path / "data").mkdir()
    rows = {"image": [{"bytes": None, "path": str(outside)}]}
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "x.parquet")
    with refused("names a file outside the data set"):
        load_data(DataConfig(source=f"parquet:{tmp_path}/data"), "train")


def test_metadata_of_an_image_folder_cannot_name_a_file_outside_it(tmp_path, refused):
    (tmp_path / "outside.png").write_bytes(encoded("PNG", size=(8, 8)))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded("PNG", size=(8, 8)))
    (folder / "metadata.jsonl").write_text('{"file_name": "../outside.png"}\n')
    with refused():
        load_data(DataConfig(source=f"imagefolder:{folder}"), "train")


def test_images_that_exceed_the_memory_are_refused_while_they_are_read(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encoded("PNG", size=(8, 8)))
    monkeypatch.setattr("os.sysconf", lambda name: 20)
    with pytest.raises(UserError, match=r"half of this machine's memory after 2: set data\.image_size"):
        load_data(DataConfig(source=f"imagefolder:{tmp_path}"), "train")
