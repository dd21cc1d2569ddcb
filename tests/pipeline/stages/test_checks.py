"""What can be known to be wrong is said before the first stage; what a command does not read is not checked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import digits
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.evaluation import EvalConfig
from fewstep.pipeline.config.keys import validated
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.stages import trajectories
from fewstep.students.load import load_student


def pictures(folder, count, size=8, mode="L", start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(digits()[0][start : start + count, 0].numpy(), start):
        image = Image.fromarray(pixels)
        image.resize((size, size)).convert(mode).save(folder / f"{index:04d}.png")
    return f"imagefolder:{folder}"


def refused(capsys, folder, *arguments):
    capsys.readouterr()
    assert main([*arguments]) == 2
    left = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "changes", "says"),
    [
        (400, {"data__reference_split": "test"}, "data.reference_split: 'test': "),
        (400, {"data__choice_split": "test"}, "data.choice_split: 'test': "),
        (
            400,
            {"eval__kid_subset_size": 65, "eval__images": 400, "data__choice_split": "val"},
            "data.choice_split: 'val'",
        ),
        (40, {"eval__kid_subset_size": 33}, "eval.kid_subset_size: 33: must be at most the 32 real images"),
        (19, {}, "data.choice_split: 3: real images are too few to choose noise levels on"),
        (3, {"eval__samplers": "[student@1]"}, "data.reference_split: 3: images are too few to measure against"),
        (40, {"eval__images": 64}, "eval.images: 64: is too few for the covariance of the 64 features of digits-cnn"),
        (40, {"eval__samplers": "[teacher@ddim:1001]"}, "teacher@ddim:1001 has more steps than the teacher"),
    ],
)
def test_a_fault_of_data_or_counts_is_said_before_the_teacher_is_trained(tiny, tmp_path, capsys, count, changes, says):
    source = pictures(tmp_path / "images", count)
    assert says in refused(capsys, tmp_path / "runs", "run", *tiny(tmp_path / "runs", data__source=source, **changes))


def test_a_reference_split_of_another_size_is_said_before_the_teacher_is_trained(tiny, tmp_path, capsys):
    pictures(tmp_path / "images" / "train", 100)
    source = f"imagefolder:{pictures(tmp_path / 'images' / 'test', 100, size=10) and tmp_path / 'images'}"
    arguments = tiny(tmp_path / "runs", data__source=source, data__reference_split="test")
    assert "split 'test' are 10x10" in refused(capsys, tmp_path / "runs", "run", *arguments)


def test_images_that_the_extractor_does_not_judge_stop_a_measurement_and_no_training(tiny, tmp_path, capsys):
    source = pictures(tmp_path / "images", 60, mode="RGB")
    arguments = tiny(tmp_path / "runs", data__source=source)
    assert "eval.extractor: 'digits-cnn': judges images of 1x8x8" in refused(
        capsys, tmp_path / "runs", "run", *arguments
    )
    assert main(["train-teacher", *arguments]) == 0


@pytest.mark.parametrize(("extractor", "dim"), [("inception", 2048), ("dinov2", 1024)])
def test_a_seed_block_smaller_than_its_covariance_is_too_few(extractor, dim):
    section = {"extractor": extractor, "throughput_batch_sizes": [1]}
    with pytest.raises(UserError, match=rf"^eval\.images: {dim}: is too few .* give {dim + 1:,} or more"):
        validated(EvalConfig, section | {"images": dim}, "eval.").check_images()
    validated(EvalConfig, section | {"images": dim + 1}).check_images()


def test_a_kid_subset_is_chosen_by_what_there_is():
    config = load_config("digits", {"eval.kid_subset_size": None}).eval
    assert [config.kid_subset(real) for real in (5000, 60)] == [100, 60]
    config = load_config("mnist", {"eval.kid_subset_size": None}).eval
    assert [config.kid_subset(real) for real in (5000, 60)] == [1000, 60]


def test_distilling_for_one_step_needs_no_extractor_no_choice_and_no_settings_of_a_measurement(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(trajectories, "load_extractor", lambda *_: pytest.fail("opened an extractor"))
    source = pictures(tmp_path / "images", 12, mode="RGB")  # too few to choose on
    changes = {"eval__samplers": "[teacher@ddim:5000, student@1]", "eval__images": 3, "eval__kid_subset_size": 2}
    assert main(["distill", *tiny(tmp_path, data__source=source, eval__extractor="inception", **changes)]) == 0
    assert "searching noise levels" not in capsys.readouterr().out
    manifest = json.loads((tmp_path / "digits" / "students" / "student" / "manifest.json").read_text())
    assert manifest["search"] is None
    card = (tmp_path / "digits" / "students" / "student" / "README.md").read_text()
    assert "No noise levels were chosen" in card


@pytest.mark.parametrize(("steps", "found"), [("[2]", ["two_steps"]), ("[1, 4]", ["two_steps", "four_steps"])])
def test_noise_levels_are_chosen_for_the_steps_asked_for(tiny, tiny_run, tmp_path, capsys, steps, found):
    shutil.copytree(tiny_run, tmp_path / "digits")
    assert main(["distill", *tiny(tmp_path, student__steps=steps)]) == 0
    out = capsys.readouterr().out
    assert ("distilling with" in out) is False  # the weights are kept
    assert ("student: up to date" in out) == (steps == "[2]")  # which is what eval.samplers asks for
    manifest = json.loads((tmp_path / "digits" / "students" / "student" / "manifest.json").read_text())
    assert [key for key in manifest["search"] if key.endswith("_steps")] == found


@pytest.mark.parametrize("schedule", [{"num_train_timesteps": 250}, {"trained_betas": [0.001, 0.002] * 50}])
def test_a_teacher_with_few_timesteps_goes_through_a_run_with_the_defaults(tiny, tiny_run, tmp_path, capsys, schedule):
    shutil.copytree(tiny_run / "teacher", tmp_path / "short")
    path = tmp_path / "short" / "scheduler" / "scheduler_config.json"
    kept = json.loads(path.read_text()) | {"beta_schedule": "linear"} | schedule
    kept["num_train_timesteps"] = len(schedule.get("trained_betas", ())) or 250
    path.write_text(json.dumps(kept))
    samplers = '["teacher@ddpm:all", "student@1", "student@2"]'
    assert main(["run", *tiny(tmp_path, teacher__source=tmp_path / "short", eval__samplers=samplers)]) == 0
    results = json.loads((tmp_path / "digits" / "report" / "results.json").read_text())
    assert f"teacher@ddpm:{kept['num_train_timesteps']}" in {each["name"] for each in results["samplers"]}
    student = load_student(tmp_path / "digits")
    betas = np.asarray(schedule.get("trained_betas", np.linspace(1e-4, 0.02, 250)))
    highest = float(np.sqrt(1 / np.prod(1 - betas) - 1))
    assert student.space.sigma_max == pytest.approx(min(highest, 80), abs=0.011)
    assert torch.isfinite(student(torch.randn(1, 1, 8, 8), student.space.sigma_max)).all()
    capsys.readouterr()
    assert main(["run", str(tmp_path / "digits" / "config.yaml")]) == 0
    assert capsys.readouterr().out.count("up to date") == 3
