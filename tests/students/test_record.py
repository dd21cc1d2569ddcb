"""Chosen noise levels are kept in the student's folder, and checked when they are read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import ConsistencyModelPipeline, UNet2DModel

from fewstep.errors import UserError
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.grid import solve_grid
from fewstep.students.load import load_student
from fewstep.students.record import RECORD
from fewstep.students.save import round_trip, save_student

POINTS = [70, 64, 40, 0]


@pytest.fixture
def original(tiny_unet: Callable[..., UNet2DModel]) -> ConsistencyModel:
    return ConsistencyModel(tiny_unet(seed=5), grid=replace(solve_grid(0.65, 0.002, 80.0), chosen={4: POINTS}))


def test_chosen_levels_come_back_and_the_stock_call_of_the_card_uses_them(original: ConsistencyModel, tmp_path: Path):
    assert max(save_student(original, tmp_path).values()) < 1e-5
    model = load_student(tmp_path)
    assert isinstance(model, ConsistencyModel)
    assert model.grid == original.grid
    assert model.step_sigmas(4) == original.step_sigmas(4)
    assert model.step_sigmas(4)[2] == model.step_sigmas(2)[1] == pytest.approx(0.65, rel=1e-4)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["timesteps"] == {"4": POINTS}
    assert record["levels"] == {str(steps): model.step_sigmas(steps) for steps in (1, 2, 4, 8)}
    assert model.stock_call(2) == {"num_inference_steps": 2}
    pipeline = ConsistencyModelPipeline.from_pretrained(str(tmp_path))
    pipeline(**model.stock_call(4), output_type="np")
    assert pipeline.scheduler.sigmas[:-1].tolist() == model.step_sigmas(4)


def test_the_round_trip_checks_the_call_with_chosen_levels(
    original: ConsistencyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_student(original, tmp_path)
    other = {"num_inference_steps": None, "timesteps": [100, 64, 40, 0]}
    monkeypatch.setattr(ConsistencyModel, "stock_call", lambda model, steps: other)
    with pytest.raises(ValueError, match="at 4 steps"):
        round_trip(original, tmp_path)


def test_without_a_record_the_levels_are_the_grids_own(original: ConsistencyModel, tmp_path: Path):
    save_student(original, tmp_path)
    (tmp_path / RECORD).unlink()
    assert load_student(tmp_path).grid == replace(original.grid, chosen={})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format: 2: is of another version"),
        ({"timesteps": [70, 64, 40, 0]}, "timesteps is no JSON object"),
        ({"timesteps": {"4": ["70", 64, 40, 0]}}, r"timesteps.4\[0\] is str"),
        ({"timesteps": {"4": [70, 64, 0]}}, "must be 4 points"),
        ({"timesteps": {"0": []}}, "must be 0 points"),
        ({"timesteps": {"4": [64, 70, 40, 0]}}, "descend to 0"),
        ({"timesteps": {"4": [70, 64, 40, 1]}}, "descend to 0"),
        ({"timesteps": {"4": [128, 64, 40, 0]}}, "descend to 0"),
        ({"timesteps": {"4": [71, 64, 40, 0]}}, "not the noise levels of its timesteps"),
        ({"levels": {"2": [80.0, 0.65]}}, "not the noise levels of its timesteps"),
    ],
)
def test_a_damaged_record_is_one_line_naming_it(
    original: ConsistencyModel, tmp_path: Path, change: dict[str, Any], says: str
):
    save_student(original, tmp_path)
    path = tmp_path / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=says) as caught:
        load_student(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
