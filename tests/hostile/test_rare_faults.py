"""Faults that no other test meets, one line each: what `make coverage` listed as never raised."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from diffusers import DiffusionPipeline
from PIL import Image

from fewstep.eval.array_file import read_tensors
from fewstep.eval.images import check_size
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.decode import Decoder
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.sampling.stock import denoising_network
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.pipeline.stages.run import run


class Decoding(DiffusionPipeline):
    """A pipeline without a network that could be counted."""

    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.register_modules(vae=vae)


def a_list_of_tensors(at: Path) -> None:
    torch.save([torch.zeros(2)], at / "w.pth")
    read_tensors("weights", at / "w.pth", "weights")


def a_broken_link_among_parquet_files(at: Path) -> None:
    (at / "train-00000.parquet").symlink_to(at / "gone")
    load_data(DataConfig(source=f"parquet:{at}"), "train")


def one_training_feature(at: Path) -> None:
    load_config("digits", {"eval.training_features": 1})


FAULTS = {
    "does not hold a dictionary of named tensors": a_list_of_tensors,
    "train-00000.parquet: is no regular file, or a link to nothing": a_broken_link_among_parquet_files,
    "eval.training_features: 1: is too few": one_training_feature,
    "model: makes images (C, H, W) = (1, 5000, 8)": lambda at: check_size("model", (1, 5000, 8)),
    "data: 3: is a section: give its keys": lambda at: load_config("digits", {"data": 3}),
    "a.png: has no pixels": lambda at: Decoder(image_size=None, channels=None).fit("a.png", Image.new("L", (0, 4))),
    "until: 'nothing': must be one of": lambda at: run("digits", until="nothing"),
    "x: Decoding has neither unet nor transformer": lambda at: denoising_network("x", Decoding(torch.nn.Identity())),
    "nobody/nothing@2: no such folder, and not to be had from the hub": lambda at: open_subject(
        "nobody/nothing@2", torch.device("cpu")
    ),
}


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
@pytest.mark.parametrize("says", FAULTS)
def test_a_fault_is_one_line(tmp_path, refused, says):
    with refused(says):
        FAULTS[says](tmp_path)


def test_a_data_set_that_the_hub_does_not_know(monkeypatch, refused):
    asked = []

    def unknown(*arguments, **options):
        asked.append((arguments, options))
        raise DatasetNotFoundError(arguments[0])

    monkeypatch.setattr("datasets.load_dataset", unknown)
    with refused("no such public data set on the hub"):
        load_data(DataConfig(source="hub:nobody/nothing"), "train")
    with refused("no such public data set on the hub at revision v2"):
        load_data(DataConfig(source="hub:nobody/nothing", revision="v2", config_name="small"), "train")
    assert asked == [(("nobody/nothing", None), {"revision": None}), (("nobody/nothing", "small"), {"revision": "v2"})]


def test_more_pairs_than_real_images(tiny_run, tmp_path, monkeypatch, capsys):
    data = load_data(load_config("digits").data, "train")
    monkeypatch.setattr("fewstep.pipeline.stages.rate.load_data", lambda *_: replace(data, images=data.images[:2]))
    assert main(["rate", str(tiny_run), "--pairs", "3", "-o", str(tmp_path / "rate.html")]) == 2
    assert capsys.readouterr().err == "fewstep: error: --pairs: 3: there are only 2 real images\n"


def test_training_images_of_another_size(tiny_run, tmp_path, capsys):
    Image.new("L", (16, 16), 9).save(tmp_path / "a.png")
    Image.new("L", (16, 16), 7).save(tmp_path / "b.png")
    reference = str(tmp_path / "ref.safetensors")
    assert main(["reference", "digits", "-o", reference]) == 0
    capsys.readouterr()
    arguments = [
        "benchmark",
        f"{tiny_run}/students/student@1",
        "--eval.reference",
        reference,
        "-o",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--training", f"imagefolder:{tmp_path}"]) == 2
    assert "holds images (1, 16, 16), not (1, 8, 8)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
