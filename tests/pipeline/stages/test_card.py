"""The model card in a student's folder tells how to use it, and the numbers of its own manifest."""

import json
import re

from diffusers import ConsistencyModelPipeline
from small_conditional import conditional_student

import fewstep
from fewstep.pipeline.config.reading import config_from_dict
from fewstep.pipeline.stages.card import model_card
from fewstep.students.consistency import ConsistencyModel


def test_the_card_is_that_of_the_student_beside_it(tiny_run):
    folder = tiny_run / "students" / "student"
    card, manifest = (folder / "README.md").read_text(), json.loads((folder / "manifest.json").read_text())
    model = fewstep.load_student(folder)
    assert isinstance(model, ConsistencyModel)
    config = config_from_dict(json.loads((tiny_run / "config.json").read_text()))
    assert model_card(config, config.trainings["student"], model, manifest) == card
    assert card.startswith("---\nlibrary_name: diffusers\n")
    for steps in (1, 2, 4, 8):
        levels = ", ".join(f"{sigma:.4g}" for sigma in model.step_sigmas(steps))
        assert f"| {steps} | {levels} |" in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert "8x8 grey images" in card
    assert "`digits`" in card
    search = manifest["search"]
    best = min(search["two_steps"].items(), key=lambda entry: entry[1])[0]
    assert abs(model.step_sigmas(2)[1] / float(best) - 1) < 0.05
    assert 0 < search["cost"]["evaluations"] <= 5 * 8 * search["images"]
    assert f"{search['cost']['evaluations']:,} network evaluations" in card
    call = re.search(r"of four steps are those of `pipeline\((.*)\)`", card)
    assert call is not None
    pipeline = ConsistencyModelPipeline.from_pretrained(str(folder))
    pipeline(**eval(f"dict({call[1]})"), output_type="np")
    assert pipeline.scheduler.sigmas[:-1].tolist() == model.step_sigmas(4)


def test_the_card_of_a_conditional_student_names_its_classes_and_labels_its_calls(tiny_run):
    manifest = json.loads((tiny_run / "students" / "student" / "manifest.json").read_text())
    config = config_from_dict(json.loads((tiny_run / "config.json").read_text()))

    def card(names):
        return model_card(config, config.trainings["student"], conditional_student(), manifest | {"classes": names})

    assert "It makes images of 3 classes: 0 `cat`, 1 `fat\\ndog`, 2 `cow`. Give" in card(["cat", "fat\ndog", "cow"])
    assert card(None) == card(["0", "1", "2"])
    assert "It makes images of 3 classes, 0 to 2. Give `class_labels`" in card(None)
    assert "- class-conditional\n---" in card(None)
    assert "labels = [image % 3 for image in range(16)]\nimages = pipeline(batch_size=16, class_labels=labels" in card(
        None
    )
    call = re.search(r"of four steps are those of `pipeline\((.*)\)`", card(None))
    assert call is not None
    pipeline = conditional_student().pipeline()
    pipeline.set_progress_bar_config(disable=True)
    arguments = eval(f"dict({call[1]})", {"labels": [image % 3 for image in range(16)]})
    assert len(pipeline(**arguments, output_type="np", return_dict=False)[0]) == 16
