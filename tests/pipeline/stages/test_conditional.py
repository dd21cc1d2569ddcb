"""A class-conditional run from labels to report: guided teacher, a student that takes labels, images of a class."""

import json
import shutil
from typing import Any

import pytest
import torch
from conftest import tiny_arguments
from diffusers import ConsistencyModelPipeline

from fewstep import load_student, sample
from fewstep.errors import UserError
from fewstep.pipeline.cli.main import main
from fewstep.teachers.load import load_teacher


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """OUT/digits, with a guided class-conditional teacher."""
    out = tmp_path_factory.mktemp("conditional")
    changes = {"teacher__class_conditional": "true", "teacher__guidance": 2.0, "student__regression_kimg": 0.1}
    changes |= {"eval__images": 160, "student__matching": "{share: 0.5}", "student__method": "cmt"}
    assert main(["run", *tiny_arguments(out, **changes)]) == 0
    return out / "digits"


def test_the_student_is_of_the_classes_and_stock_diffusers_takes_their_labels(run):
    student, teacher = load_student(run), load_teacher(run / "teacher")
    assert (teacher.space.num_classes, teacher.space.null_class) == (10, True)
    rows = [model.network.get_parameter("class_embedding.weight").shape[0] for model in (teacher, student)]
    assert rows == [11, 10]
    assert student.space.num_classes == 10
    pipeline: Any = ConsistencyModelPipeline.from_pretrained(run / "students" / "student")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(index) for index in range(4)]
    labels = torch.tensor([3, 3, 7, 0])
    arguments = {"class_labels": labels, "num_inference_steps": 1, "generator": generators, "output_type": "np"}
    images = torch.from_numpy(pipeline(batch_size=4, **arguments).images)
    ours = sample(student, 4, steps=1, labels=labels.tolist())
    difference = (images.permute(0, 3, 1, 2) * 255 - ours).abs()
    assert difference.max() <= 0.51  # of a level of 255: rounding
    assert not torch.equal(ours, sample(student, 4, steps=1))


def test_results_have_agreement_and_distance_by_class_and_the_report_shows_them(run):
    results = json.loads((run / "report" / "results.json").read_text())
    assert results["benchmark"]["classes"]["names"] == [str(digit) for digit in range(10)]
    assert 0.9 < results["benchmark"]["classes"]["real_agreement"] <= 1
    for sampler in results["samplers"]:
        assert 0 <= sampler["quality"]["metrics"]["class_agreement"]["mean"] <= 1
    teacher = next(each for each in results["samplers"] if each["kind"] == "teacher")
    assert teacher["nfe"] == 4  # two steps, each with a class and without one
    assert results["trainings"][0]["conversion_rmse"]
    page = (run / "report" / "index.html").read_text()
    for heading in ("Class by class", "Eight of each class, a row a class", "From teacher to student"):
        assert heading in page


def test_trajectories_know_the_classes_they_are_of(run):
    record = json.loads((run / "trajectories" / "trajectories.json").read_text())
    assert record["num_classes"] == 10
    manifest = json.loads((run / "trajectories" / "manifest.json").read_text())
    assert manifest["evaluations"] == 2 * 32 * 4


def test_images_of_a_class_from_the_command_line_and_what_is_refused(run, tmp_path, capsys):
    assert main(["sample", str(run), "--labels", "3", "--num", "4", "-o", str(tmp_path / "threes")]) == 0
    assert len(list((tmp_path / "threes").glob("0*.png"))) == 4
    assert main(["sample", str(run), "--labels", "10", "-o", str(tmp_path / "no")]) == 2
    assert "labels: [10]: give one or more of this student's classes, 0 to 9" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    with pytest.raises(UserError, match="classes, 0 to 9"):
        sample(load_student(run), 2, labels=[])


def test_another_guidance_keeps_the_teacher_and_makes_its_students_again(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "digits")
    changes = {"teacher__class_conditional": "true", "teacher__guidance": 3.0, "student__regression_kimg": 0.1}
    changes |= {"eval__images": 160, "student__matching": "{share: 0.5}", "student__method": "cmt"}
    assert main(["distill", *tiny_arguments(tmp_path, **changes)]) == 0
    said = capsys.readouterr().out
    assert "teacher: up to date" in said
    assert "distilled again from the start" in said


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"teacher__guidance": 2.0}, "teacher.guidance: 2.0: needs teacher.class_conditional"),
        (
            {"teacher__class_conditional": "true", "teacher__guidance": 2.0, "teacher__label_dropout": 0},
            "and a teacher.label_dropout above 0",
        ),
        ({"data__revision": "v1"}, "data.revision: 'v1': is of a data set on the hub"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(tmp_path, capsys, changes, fault):
    assert main(["run", *tiny_arguments(tmp_path, **changes)]) == 2
    assert fault in capsys.readouterr().err


def test_a_student_of_ddim_steps_has_no_classes_and_data_without_labels_none_to_learn(run, tmp_path, capsys):
    shutil.copytree(run / "teacher", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    changes = {"teacher__source": tmp_path / "model", "student__method": "pd"}
    assert main(["distill", *tiny_arguments(tmp_path / "out", **changes)]) == 2
    assert "a student of a class-conditional teacher cannot be of DDIM steps" in capsys.readouterr().err
    sample(load_student(run), 4)
    assert main(["sample", str(run), "--num", "40", "--steps", "1", "-o", str(tmp_path / "images")]) == 0
    (tmp_path / "images" / "grid.png").unlink()
    changes = {"data__source": f"imagefolder:{tmp_path / 'images'}", "teacher__source": tmp_path / "model"}
    assert main(["distill", *tiny_arguments(tmp_path / "other", **changes)]) == 2
    assert "the data have no labels, which a class-conditional teacher needs" in capsys.readouterr().err
