"""Every source becomes the same kind of tensor, with labels and a provenance that says what was done."""

import hashlib
import io
import json
import time

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.eval.images import pixels_sha256
from fewstep.files import write_json
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.load import _labels, is_class, load_data
from fewstep.pipeline.stages.context import RunContext


def image(seed, size=(8, 8), mode="L"):
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0]) if bands == 1 else (size[1], size[0], bands)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def parquet(path, columns, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def encoded(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_digits_are_scikit_learns_scaled_to_bytes():
    data = load_data(DataConfig(source="digits"), "train")
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == torch.uint8
    assert data.labels is not None
    assert (data.labels.dtype, data.labels[:4].tolist()) == (torch.int64, [0, 1, 2, 3])
    assert data.class_names == tuple("0123456789")
    assert data.images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    assert json.loads(json.dumps(data.provenance)) == data.provenance
    assert data.provenance["count"] == 1797
    assert data.provenance["shape"] == [1, 8, 8]
    assert data.provenance["sha256"] == "a2c68e1b959d7a317d96f4067f80b7a340ad844652a263506697b73d95cd89c6"


def test_digits_can_be_resized_and_coloured_and_it_is_recorded():
    data = load_data(DataConfig(source="digits", image_size=16, channels=3), "train")
    assert data.images.shape == (1797, 3, 16, 16)
    assert torch.equal(data.images[:, 0], data.images[:, 1])
    assert data.provenance["transforms"][1:] == [
        "grey repeated to RGB",
        "shorter side resized to 16 (bicubic, antialiased), cropped to the centre",
    ]


def test_the_pixel_hash_covers_shape_and_bytes():
    pixels = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    assert pixels_sha256(pixels) == hashlib.sha256(b"[1, 1, 4, 4]" + bytes(range(16))).hexdigest()
    assert pixels_sha256(pixels) != pixels_sha256(pixels.reshape(1, 1, 2, 8))
    assert pixels_sha256(pixels.transpose(2, 3).contiguous().transpose(2, 3)) == pixels_sha256(pixels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_parquet_file_with_image_and_label_types(tmp_path, mode):
    pictures = [image(seed, mode=mode) for seed in range(5)]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    path = parquet(tmp_path / "mine.parquet", {"picture": pictures, "kind": [0, 1, 1, 0, 1]}, features)
    data = load_data(DataConfig(source=f"parquet:{path}"), "train")
    expected = np.stack([np.asarray(picture).reshape(8, 8, -1).transpose(2, 0, 1) for picture in pictures])
    assert torch.equal(data.images, torch.from_numpy(expected))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 1, 0, 1]
    assert data.class_names == ("cat", "dog")
    assert data.provenance["columns"] == {"image": "picture", "label": "kind"}
    assert data.provenance["transforms"] == []


def test_a_parquet_folder_is_split_by_file_names_and_its_shards_are_joined(tmp_path):
    for shard in range(2):
        name = f"train-0000{shard}-of-00002.parquet"
        parquet(tmp_path / "plain_text" / name, {"img": [encoded(image(shard))], "label": [shard]})
    parquet(tmp_path / "plain_text" / "test-00000-of-00001.parquet", {"img": [encoded(image(9))], "label": [9]})
    config = DataConfig(source=f"parquet:{tmp_path}", reference_split="test")
    train, test = load_data(config, "train"), load_data(config, "test")
    assert (len(train.images), len(test.images)) == (2, 1)
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1]
    assert train.class_names is None
    assert torch.equal(test.images[0, 0], torch.from_numpy(np.array(image(9))))
    assert test.provenance["split"] == "test"


def test_structs_and_named_label_columns_without_types_are_found(tmp_path):
    rows = [{"bytes": encoded(image(seed)), "path": None} for seed in range(2)]
    path = parquet(tmp_path / "a.parquet", {"id": [7, 8], "image": rows, "fine_label": ["b", "a"]})
    data = load_data(DataConfig(source=f"parquet:{path}"), "train")
    assert data.labels is not None
    assert (data.labels.tolist(), data.class_names) == ([1, 0], ("a", "b"))
    chosen = load_data(DataConfig(source=f"parquet:{path}", label_column="id"), "train")
    assert chosen.labels is not None
    assert (chosen.labels.tolist(), chosen.provenance["columns"]["label"]) == ([7, 8], "id")


def test_unknown_labels_are_left_out_unless_asked_for(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"image": [encoded(image(0))] * 2, "label": [-1, 3]})
    data = load_data(DataConfig(source=f"parquet:{path}"), "train")
    assert data.labels is None
    assert data.class_names is None
    assert data.provenance["columns"]["label"] is None


def test_an_image_folder_takes_labels_from_its_folders(tmp_path):
    for split, kind, seed in [("train", "cat", 0), ("train", "dog", 1), ("test", "dog", 2)]:
        folder = tmp_path / split / kind
        folder.mkdir(parents=True)
        image(seed, mode="RGB").save(folder / f"{seed}.png")
    config = DataConfig(source=f"imagefolder:{tmp_path}", reference_split="test")
    data = load_data(config, "train")
    assert data.images.shape == (2, 3, 8, 8)
    assert data.labels is not None
    assert (data.labels.tolist(), data.class_names) == ([0, 1], ("cat", "dog"))
    assert load_data(config, "test").images.shape == (1, 3, 8, 8)


def test_a_flat_image_folder_has_no_labels(tmp_path):
    image(0).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data(DataConfig(source=f"imagefolder:{tmp_path}"), "train")
    assert data.images.shape == (1, 1, 8, 8)
    assert data.labels is None


def test_resize_is_of_the_shorter_side_and_the_crop_is_central(tmp_path):
    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 0, 0), (16, 0, 48, 32))
    picture.save(tmp_path / "a.png")
    image(1, size=(20, 40)).save(tmp_path / "b.png")
    data = load_data(DataConfig(source=f"imagefolder:{tmp_path}", image_size=16, channels=3), "train")
    assert data.images.shape == (2, 3, 16, 16)
    inner = data.images[0, :, :, 2:14]
    assert inner[0].min() > 250
    assert inner[1:].max() < 5
    assert len(data.provenance["transforms"]) == 2


def test_colour_becomes_grey_by_luma(tmp_path):
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "a.png")
    image(1).save(tmp_path / "b.png")
    data = load_data(DataConfig(source=f"imagefolder:{tmp_path}", channels=1), "train")
    assert data.images[0].unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    assert data.provenance["transforms"] == ["converted to grey (ITU-R 601)"]


def test_palette_bilevel_and_opaque_alpha_are_read_exactly(tmp_path):
    colours = image(0, mode="RGB").quantize(16)
    opaque = image(1, mode="RGB")
    opaque.putalpha(255)
    colours.save(tmp_path / "a.png")
    opaque.save(tmp_path / "b.png")
    data = load_data(DataConfig(source=f"imagefolder:{tmp_path}"), "train")
    assert torch.equal(data.images[0].permute(1, 2, 0), torch.from_numpy(np.array(colours.convert("RGB"))))
    assert torch.equal(data.images[1].permute(1, 2, 0), torch.from_numpy(np.array(image(1, mode="RGB"))))
    (tmp_path / "bits").mkdir()
    image(2).convert("1").save(tmp_path / "bits" / "a.png")
    bits = load_data(DataConfig(source=f"imagefolder:{tmp_path / 'bits'}"), "train")
    assert set(bits.images.unique().tolist()) == {0, 255}


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    data = load_data(DataConfig(source=f"imagefolder:{tmp_path}"), "train")
    assert torch.equal(data.images[0, 0].flip(0, 1), torch.from_numpy(np.array(picture)))
    assert data.provenance["transforms"] == ["turned upright by EXIF orientation"]


def test_sixty_thousand_images_are_read_in_seconds(real_data):
    config = DataConfig(source=f"parquet:{real_data('fashion_mnist')}", reference_split="test")
    start = time.process_time()
    data = load_data(config, "train")
    assert time.process_time() - start < 30
    assert data.images.shape == (60_000, 1, 28, 28)
    assert data.class_names is not None
    assert len(data.class_names) == 10
    assert data.provenance["sha256"] == "fb2fa9ee3a72f581bee54e52ad92cfda67cb841d6a335d9a8a00e2af788c0da1"


def test_real_colour_images_and_their_labels(real_data):
    data = load_data(DataConfig(source=f"parquet:{real_data('cifar10')}", split="test"), "test")
    assert data.images.shape == (10_000, 3, 32, 32)
    assert data.labels is not None
    assert data.labels.bincount().tolist() == [1000] * 10


def test_a_run_whose_images_were_replaced_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.new("L", (8, 8), 40 * index).save(tmp_path / "images" / f"{index}.png")
    source = DataConfig(source=f"imagefolder:{tmp_path / 'images'}", reference_split=None)
    config = load_config("digits").model_copy(update={"data": source, "out": tmp_path})
    config.folder.mkdir(parents=True)
    write_json(config.folder / "data.json", RunContext(config).data_facts)
    assert len(RunContext(config).data) == 4
    Image.new("L", (8, 8), 7).save(tmp_path / "images" / "2.png")
    with pytest.raises(UserError, match=r"data\.source: .*the images have changed since this run began: put them back"):
        RunContext(config).data  # noqa: B018 - read where it is first asked for


@pytest.mark.parametrize("label", [None, "cat", 1.0, -1, 2**31, 2**70])
@pytest.mark.timeout(5)
def test_what_is_no_label_is_known_at_once(label):
    assert not is_class(label)
    assert not is_class(label, 10)
    with pytest.raises(UserError, match=r"data\.label_column: 'kind': row 1 has the label"):
        _labels([0, label], None, "kind")
