"""Numbers in words: rounding, headline and its absences, labels that keep apart, reproducible figures."""

import json
import re

import numpy as np
import pytest

from fewstep.eval.report.inputs import read_run
from fewstep.eval.report.notes import caveats
from fewstep.eval.report.plots import (
    Point,
    level_profiles,
    losses_by_level,
    pareto_front,
    quality_against_time,
    running_mean,
    training_curves,
)
from fewstep.eval.report.tables import duration, headline, number, spread


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (33.4449, "33.4"),
        (0.012345, "0.0123"),
        (2400.4, "2,400"),
        (999.6, "1,000"),
        (9.996, "10.0"),
        (0, "0.00"),
        (-0.000321, "-0.000321"),
        (0.00001234, "1.23e-05"),
    ],
)
def test_number_keeps_three_figures(value, text):
    assert number(value) == text


def test_spread_has_no_interval_for_one_block():
    assert spread({"mean": 33.44, "sd": None}) == "33.4"
    assert spread({"mean": 33.44, "sd": 0.92}) == "33.4 ± 0.9"
    assert spread({"mean": 33.44, "sd": 0.004}) == "33.4 ± 0.004"
    assert spread({"mean": 33.44, "sd": 0.0}) == "33.4 ± 0.0"
    assert spread(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.97, "1 min 0 s"), (201.4, "3 min 21 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_headline_without_ddpm_or_teacher(run_dir):
    results = json.loads(json.dumps(read_run(run_dir, []).results))
    full = results["samplers"]
    results["samplers"] = [s for s in full if s["name"] != "teacher@ddpm:1000"]
    assert headline(results) == (
        "One network evaluation: FD (digits-cnn) 33.4 against the teacher’s best 22.6 (DDIM, 50 steps)."
    )
    results["samplers"] = [s for s in full if s["name"] == "student@2"]
    assert headline(results) == "Two network evaluations: FD (digits-cnn) 28.8."
    results["samplers"] = [s for s in full if s["kind"] == "teacher"]
    assert headline(results) == "digits: no student’s quality was measured."


def test_times_that_were_scaled_are_named(run_dir):
    results = json.loads(json.dumps(read_run(run_dir, []).results))
    before, (ddpm, ddim) = caveats(results), results["samplers"][:2]
    ddpm["timing"]["throughput"]["evaluations_timed"] = 40
    ddim["timing"]["pace"] = {"anchor": "student@1", "factor": 0.97}
    assert [line for line in caveats(results) if line not in before] == [
        "Too long to be timed whole, so timed over some network evaluations and scaled to all: "
        "Teacher, DDPM, 1000 steps (40 of 1,000).",
        "Timed after the rest, and scaled by the pace of a sampler timed both times: "
        "Teacher, DDIM, 50 steps (× 0.970).",
    ]


def test_pareto_front_drops_what_another_beats_in_both():
    fast, slow, beaten = (
        Point(name, "teacher", ms, fd, None) for name, ms, fd in [("a", 1, 9), ("b", 5, 3), ("c", 6, 4)]
    )
    assert pareto_front([beaten, slow, fast]) == [fast, slow]


def test_plot_is_an_svg_with_text_as_text_and_equal_bytes():
    points = [Point(f"Sampler & co, {i} steps", "teacher", 2.0 * i, 30.0, 0.5) for i in range(1, 7)]
    svg = quality_against_time(points, "FID", 2.0)
    assert svg == quality_against_time(points, "FID", 2.0)
    assert svg.startswith("<svg")
    assert "Sampler &amp; co, 6 steps" in svg
    assert "var(--teacher)" in svg
    assert not re.search(r"<metadata|<script|#0([1-9])0\1", svg)


def test_measured_averages_have_a_panel_beside_the_loss_with_a_line_each():
    records = [{"kimg": kimg, "loss": 0.1 + 1 / kimg} for kimg in range(1, 30)]
    plain = training_curves({"teacher": records, "student": records})
    assert "KID" not in plain
    for kimg in (10, 20):
        records[kimg] = records[kimg] | {"kid_10": 0.01 / kimg, "kid_2": -0.001}
    svg = training_curves({"teacher": records[:9], "student": records})
    assert svg.index("2 kimg") < svg.index("10 kimg")
    assert svg.count("KID, one step") == 1
    assert svg.count("training loss (log)") == 1


def test_losses_by_level_are_means_of_each_quarter_of_training():
    records = [{"kimg": 2.0 * i, "loss/0.21": float(i), "loss/0.055": 1.0, "loss": 7.0} for i in range(1, 9)]
    records[7] = records[7] | {"loss/11": 0.5}
    found = [(sigma.tolist(), loss.tolist()) for sigma, loss in level_profiles(records)]
    levels = [0.055, 0.21]
    assert found[:3] == [(levels, [1.0, 1.5]), (levels, [1.0, 3.5]), (levels, [1.0, 5.5])]
    assert found[3:] == [([*levels, 11.0], [1.0, 7.5, 0.5])]
    assert len(level_profiles(records[:1])) == 1


def test_losses_by_level_have_a_panel_for_each_log_that_has_them():
    earlier, records = [{"kimg": 1.0, "loss": 0.5}], [{"kimg": 1.0, "loss": 0.5, "loss/0.21": -0.5}]
    assert losses_by_level({"teacher": earlier}) is None
    svg = losses_by_level({"teacher": earlier, "student": records, "student b": records})
    assert svg is not None
    assert [title in svg for title in ("Teacher", "Student<", "Student b<")] == [False, True, True]


def test_running_mean_of_a_constant_is_the_constant_and_of_one_record_itself():
    np.testing.assert_allclose(running_mean(np.full(5000, 0.25)), 0.25, rtol=1e-12)
    line = running_mean(np.arange(401.0))  # of a window of 21
    np.testing.assert_allclose(line[10:-10], np.arange(10, 391))
    assert line[0] == pytest.approx(5)
    assert running_mean(np.array([2.0])).tolist() == [2.0]


def test_a_long_log_makes_no_long_page():
    loss = np.exp(np.random.default_rng(0).normal(size=50_000))
    records = [{"kimg": float(i), "loss": value} for i, value in enumerate(loss)]
    assert len(training_curves({"teacher": records})) < 500_000
