"""Sampling for people: files, numbers that depend on the image's index alone, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep.errors import UserError
from fewstep.pipeline.cli.main import main

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def student(tiny_run):
    return fewstep.load_student(tiny_run / "students" / "student")


def pngs(folder):
    return np.stack([pixels(path) for path in sorted(folder.glob("0*.png"))])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_png_files_and_a_grid(tiny_run, tmp_path, capsys):
    out = tmp_path / "images"
    assert main(["sample", str(tiny_run), "--num", "5", "--steps", "2", "--seed", "3", "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [*(f"{index:05d}.png" for index in range(5)), "grid.png"]
    assert pngs(out).shape == (5, 8, 8)
    # three columns and two rows of 8 pixels with one between, enlarged 30 times
    assert pixels(out / "grid.png").shape == (17 * 30, 26 * 30)
    assert str(out) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_the_files_hold_what_the_api_returns(tiny_run, student, tmp_path):
    for form in ("png", "npz"):
        arguments = ["--num", "3", "--steps", "1", "--seed", "2", "--format", form, "-o", str(tmp_path / form)]
        assert main(["sample", str(tiny_run), *arguments]) == 0
    images = fewstep.sample(student, num=3, steps=1, seed=2)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 1, 8, 8)
    assert [path.name for path in (tmp_path / "npz").iterdir()] == ["samples.npz"]
    stored = np.load(tmp_path / "npz" / "samples.npz")["arr_0"]
    assert stored.shape == (3, 8, 8, 1)
    assert stored.dtype == np.uint8
    device_rounding = 1  # the command may use another device
    assert np.abs(stored.transpose(0, 3, 1, 2).astype(int) - images.numpy()).max() <= device_rounding
    assert (pngs(tmp_path / "png") == stored[..., 0]).all()


def test_an_image_depends_on_its_index_not_on_how_many_are_made(student):
    five, nine = (fewstep.sample(student, num=num, steps=2, seed=1).int() for num in (5, 9))
    assert int((five - nine[:5]).abs().max()) <= 1  # of 255: floats are rounded by batch size
    assert len(nine.unique(dim=0)) == 9
    other = fewstep.sample(student, num=5, steps=2, seed=2).int()
    assert (five != other).flatten(1).any(1).all()


def test_a_student_folder_will_do_and_an_empty_folder_too(tiny_run, tmp_path):
    (tmp_path / "out").mkdir()
    assert main(["sample", str(tiny_run / "students" / "student"), "--num", "1", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "00000.png").exists()


def test_a_folder_with_files_is_refused_and_left_alone(tiny_run, tmp_path, capsys):
    (tmp_path / "precious").write_text("x")
    for out in (tmp_path, tmp_path / "precious"):
        assert main(["sample", str(tiny_run), "--num", "1", "-o", str(out)]) == 2
        assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_run_without_a_student_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert main(["sample", str(tmp_path / "run"), "--num", "1", "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "is no student" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "where"),
    [({"labels": [3]}, "labels"), ({"steps": 0}, "steps"), ({"steps": 999}, "steps"), ({"num": 0}, "num")],
)
def test_what_the_student_cannot_do_is_refused(student, wrong, where):
    with pytest.raises(UserError, match=f"^{where}: "):
        fewstep.sample(student, **{"num": 1, **wrong})


def test_a_seed_out_of_range_is_refused(student):
    with pytest.raises(ValueError, match="4096"):
        fewstep.sample(student, num=1, seed=4096)
