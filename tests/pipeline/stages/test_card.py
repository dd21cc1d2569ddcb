"""The model card in a student's folder tells how to use it, and the numbers of its own manifest."""

import json
import re

from diffusers import ConsistencyModelPipeline

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
