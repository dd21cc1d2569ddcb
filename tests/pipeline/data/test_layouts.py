"""A folder is read as its owner sees it: a hundred random layouts against ten lines that walk the tree."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.errors import UserError
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.folder import read_image_folder
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.sampling.subjects import _read_folder

NAMES = [
    "train",
    "test",
    "valid",
    "dev",
    "Val",
    "cat",
    "dog",
    "test chart",
    "train [1]",
    "eval*",
    "a?b",
    "été",
    "x-test",
]
HIDDEN = [".ipynb_checkpoints", "__MACOSX", ".git"]
FILES = ["a.png", "train 1.png", "digit test.PNG", "dev.pgm", "[0].jfif", "._a.png", "b.txt", "test_0.bmp"]
SPLITS = {"train": "train", "test": "test", "valid": "validation", "dev": "validation", "Val": "validation"}
TREES = st.dictionaries(
    st.lists(st.sampled_from(NAMES + HIDDEN), max_size=3).map(tuple),
    st.sets(st.sampled_from(FILES), max_size=3),
    max_size=5,
)


def reference(folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The splits and the classes of a folder, by a walk of its own."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not re.match(r"\.|__", name)]
        within = Path(place).relative_to(folder).parts
        found += [(*within, name) for name in names if name[0] != "." and not name.endswith(".txt")]
    paths = {"/".join(parts): parts for parts in sorted(found, key="/".join)}
    while (tops := {parts[:1] if parts[1:] else () for parts in paths.values()}) and len(tops) == 1 and () not in tops:
        if {*SPLITS} & {*next(iter(tops))}:
            break
        paths = {name: parts[1:] for name, parts in paths.items()}
    declared = all(parts[0] in SPLITS and parts[1:] for parts in paths.values())
    splits: dict[str, list[str]] = {}
    for name, parts in paths.items():
        splits.setdefault(SPLITS[parts[0]] if declared else "train", []).append(name)
    rest = {name: parts[1:] if declared else parts for name, parts in paths.items()}
    while len({parts[:1] if parts[1:] else () for parts in rest.values()} - {()}) == 1 and all(
        p[1:] for p in rest.values()
    ):
        rest = {name: parts[1:] for name, parts in rest.items()}
    classes = {name: parts[0] for name, parts in rest.items() if parts[1:]}
    return splits, classes if len(classes) == len(paths) and len({*classes.values()}) > 1 else {}


def make(folder: Path, tree) -> None:
    for parts, names in tree.items():
        place = folder.joinpath(*parts)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            (place / name).touch()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES, link=st.booleans())
def test_any_layout_is_read_as_a_walk_of_the_tree_says(tmp_path_factory, tree, link):
    folder = tmp_path_factory.mktemp("tree")
    make(folder, tree)
    if link:
        make(outside := tmp_path_factory.mktemp("elsewhere"), {("deep",): {"a.png"}})
        (folder / "linked").symlink_to(outside)
    splits, classes = reference(folder)
    if not splits:
        with pytest.raises(UserError, match="the folder holds no images"):
            read_image_folder(folder)
        return
    found = read_image_folder(folder)
    assert found.splits == splits
    assert found.columns.get("label", {}) == classes


def saved(path, shade=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(path, "PPM" if path.suffix == ".pgm" else None)
    return path


def read(folder, split="train", **settings):
    return load_data(DataConfig(source=f"imagefolder:{folder}", **settings), split)


def shades(data):
    return data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "names", [("train2017", "val2017"), ("train_images", "Val images"), ("images-train", "dev.set")]
)
def test_folders_that_are_named_for_splits_in_other_ways_declare_them(tmp_path, names):
    for shade, name in enumerate(names):
        saved(tmp_path / name / "a.png", shade)
    assert shades(read(tmp_path)) == [0]
    assert shades(read(tmp_path, "val", reference_split="val")) == [1]


def test_a_folder_around_everything_and_a_link_to_a_class_are_passed_through(tmp_path):
    saved(tmp_path / "elsewhere" / "a.png", 1)
    saved(tmp_path / "data" / "mine" / "cat" / "part" / "b.png", 2)
    (tmp_path / "data" / "mine" / "dog").symlink_to(tmp_path / "elsewhere")
    data = read(tmp_path / "data")
    assert (shades(data), data.class_names) == ([2, 1], ("cat", "dog"))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]


def test_a_loop_of_links_ends_and_is_said(tmp_path):
    saved(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "across").symlink_to(tmp_path / "b")
    data = read(tmp_path)
    assert len(data.images) == 1
    assert data.provenance["left_out"] == ["in a loop of links: a/up, b/across"]


@pytest.mark.parametrize("name", ["pq[1]", "a*b", "what?", "{x,y}", "~tilde", "hash#1", "per%20cent"])
@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_a_path_is_a_path_and_no_pattern(tmp_path, name, kind):
    import datasets

    for shade, place in enumerate((name, "pq1", "aXb", "whatX", "x", "y")):
        file = saved(tmp_path / "images" / place / "a.png", shade)
        rows = {"image": [file.read_bytes()]}
        (tmp_path / place).mkdir()
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "x.parquet")
        (tmp_path / "x.parquet").rename(tmp_path / place / "part [0].parquet")
    place = tmp_path / "images" / name if kind == "imagefolder" else tmp_path / name
    data = load_data(DataConfig(source=f"{kind}:{place}"), "train")
    assert shades(data) == [0]
    assert data.provenance["source"].endswith(name)


def test_what_is_left_out_is_said_with_its_reason(tmp_path):
    saved(tmp_path / "a.png")
    for name in ("._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png"):
        saved(tmp_path / name)
    for name in ("notes.txt", "old.zip", "b.tga"):
        (tmp_path / name).write_text("x")
    assert read(tmp_path).provenance["left_out"] == [
        "hidden: ._a.png, .ipynb_checkpoints, __MACOSX",
        "archives, which are not opened: old.zip",
        "not images by their names: 1 .tga, 1 .txt",
    ]


def test_a_folder_of_archives_alone_says_so(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"holds no images, but images\.zip: unpack it"):
        read(tmp_path)


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path, monkeypatch):
    saved(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises((UserError, PermissionError), match="Permission denied"):
        read(tmp_path)


def test_metadata_names_labels_and_images_that_it_does_not_name_are_read(tmp_path):
    for shade, name in enumerate("abc"):
        saved(tmp_path / f"{name}.png", shade)
    (tmp_path / "metadata.csv").write_text("file_name,label,text\na.png,red,one\nb.png,blue,two\n")
    assert (shades(read(tmp_path)), read(tmp_path).labels) == ([0, 1, 2], None)
    with pytest.raises(UserError, match=r"data\.label_column: 'label': row 2 has the label None"):
        read(tmp_path, label_column="label")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,red\nb.png,blue\nc.png,red\n")
    data = read(tmp_path)
    assert data.class_names == ("blue", "red")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("metadata.csv", "file_name,label\nz.png,1\n", "'z.png': is not among the images"),
        ("metadata.csv", "name,label\na.png,1\n", "row 1: must name an image in the column file_name"),
        ("metadata.jsonl", '{"file_name": 3}\n', "row 1: must name an image in the column file_name"),
        ("metadata.jsonl", "[1]\n", "metadata.jsonl: cannot be read"),
        ("metadata.csv", 'file_name\n"a.png', "metadata.csv: cannot be read"),
        ("metadata.parquet", "junk", "metadata.parquet: cannot be read"),
    ],
)
def test_metadata_that_is_wrong_is_one_line(tmp_path, name, text, says):
    saved(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        read(tmp_path)


def test_metadata_of_each_split_and_numbers_as_labels(tmp_path):
    for shade, split in enumerate(("train", "test")):
        saved(tmp_path / split / "a.png", shade)
        (tmp_path / split / "metadata.jsonl").write_text(f'{{"image_file_name": "a.png", "label": {shade + 3}}}\n')
    data = read(tmp_path, "test", reference_split="test")
    assert data.labels is not None
    assert (shades(data), data.labels.tolist(), data.class_names) == ([1], [4], None)


def test_a_benchmark_reads_what_a_training_reads(tmp_path, capsys):
    for shade, name in enumerate(("a.png", "cat/b.pgm", "dog/c.jfif", ".ipynb_checkpoints/a.png", "._a.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), shade, np.uint8)).save(path, "JPEG" if path.suffix == ".jfif" else None)
    assert _read_folder(tmp_path).equal(read(tmp_path).images)
    assert "left out: hidden: ._a.png, .ipynb_checkpoints" in capsys.readouterr().out
