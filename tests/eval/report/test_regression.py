"""What compare says of kept results and of planted changes to them."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.eval.quality.protocol import Protocol
from fewstep.eval.report.regression import Change, compare, comparison_text, read_results

KEPT = Path(__file__).parents[3] / "eval" / "results" / "digits" / "results.json"


@pytest.fixture
def kept():
    return json.loads(KEPT.read_text())


def student(results, name="student@1"):
    return next(sampler for sampler in results["samplers"] if sampler["name"] == name)


def with_values(results, values, metric="fd", seeds=None):
    """The results with other values of a metric of the one-step student."""
    made = copy.deepcopy(results)
    quality = student(made)["quality"]
    quality["metrics"][metric] = {"values": values, "mean": sum(values) / len(values), "sd": None}
    quality["seeds"] = seeds or list(range(len(values)))
    return made


def change(changes, metric="fd"):
    return next(c for c in changes if (c.sampler, c.metric) == ("student@1", metric))


def test_results_against_themselves_are_the_same(kept):
    changes = compare(kept, kept)
    assert {c.verdict for c in changes} == {"the same"}
    assert not any(c.regressed(0.0) for c in changes)
    judged = [sampler["name"] for sampler in kept["samplers"] if sampler["quality"]]
    assert [c.sampler for c in changes if c.metric == "fd"] == judged


def test_blocks_of_the_same_seeds_are_compared_in_pairs(kept):
    before, now = with_values(kept, [5.0, 7.0, 9.0]), with_values(kept, [6.0, 9.0, 12.0])
    found = change(compare(before, now))
    assert found.p == pytest.approx(1 - 3.4641016 / 14**0.5, abs=1e-6)  # t = 2 sqrt(3), two degrees of freedom
    assert found.verdict == "worse, within the noise"
    assert not found.regressed(0.05)


def test_blocks_of_other_seeds_are_compared_by_welchs_test(kept):
    before, now = with_values(kept, [1.0, 2.0, 3.0]), with_values(kept, [2.0, 3.0, 4.0], seeds=[3, 4, 5])
    # t = 1/sqrt(2/3) and equal variances make four degrees of freedom, where P(|T| > t) has a closed form
    t = 1.5**0.5
    expected = 1 - (t / (4 + t**2) ** 0.5) * (1 + 2 / (4 + t**2))
    assert change(compare(before, now)).p == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("now", "p"), [([0.002] * 3, 1.0), ([0.003] * 3, 0.0), ([0.001, 0.003, 0.002], 1.0)])
def test_blocks_that_are_all_the_same_are_compared_too(kept, now, p):
    before = with_values(kept, [0.002] * 3, "kid")
    assert change(compare(before, with_values(kept, now, "kid", [3, 4, 5])), "kid").p == pytest.approx(p)


@pytest.mark.parametrize(("bound", "regressed"), [(0.05, True), (0.19, True), (0.21, False)])
def test_a_planted_regression_is_found_beyond_the_bound_alone(kept, bound, regressed):
    before = with_values(kept, [6.0, 6.5, 7.0])
    changes = compare(before, with_values(kept, [7.2, 7.81, 8.39]))
    assert change(changes).worse_by == pytest.approx(0.2)
    assert change(changes).verdict == "worse"
    assert change(changes).regressed(bound) is regressed
    assert [c.sampler for c in changes if c.regressed(bound)] == ["student@1"] * regressed
    last = comparison_text(changes, "FD (digits-cnn)", bound)[-1]
    assert last.startswith("regression beyond" if regressed else "no regression beyond")
    assert ("student@1 by 20.0 %" in last) is regressed
    better = compare(with_values(kept, [7.2, 7.81, 8.39]), before)
    assert change(better).verdict == "better"
    assert not any(c.regressed(0.0) for c in better)


def test_one_block_has_no_significance_and_the_bound_alone_decides(kept):
    changes = compare(with_values(kept, [6.0]), with_values(kept, [6.6]))
    assert change(changes).p is None
    assert change(changes).verdict == "worse (one seed block: no significance)"
    assert change(changes).regressed(0.05)
    assert not change(changes).regressed(0.15)


def test_less_precision_is_worse_and_no_regression_of_the_distance(kept):
    before = with_values(kept, [0.60, 0.61, 0.62], "precision")
    found = change(compare(before, with_values(kept, [0.50, 0.51, 0.52], "precision")), "precision")
    assert found.worse_by == pytest.approx(0.1 / 0.61)
    assert (found.verdict, found.regressed(0.0)) == ("worse", False)


def test_a_value_of_zero_has_no_share():
    zero = Change(sampler="a", metric="fd", before=0.0, now=1.0, p=None)
    assert zero.worse_by == float("inf")
    assert zero.regressed(0.05)


def test_another_protocol_is_refused_by_the_field_that_differs(kept):
    other = copy.deepcopy(kept)
    protocol = Protocol.from_json(kept["benchmark"]["protocol"])
    other["benchmark"]["protocol"] = dataclasses.replace(protocol, images=500).to_json()
    with pytest.raises(UserError, match=r"protocol\.images: 1000: differs from 500"):
        compare(kept, other)


def test_results_without_a_common_sampler_are_refused(kept):
    other = copy.deepcopy(kept)
    other["samplers"] = [student(kept) | {"name": "student@16"}]
    with pytest.raises(UserError, match="judges none of student@16"):
        compare(kept, other)


@pytest.mark.parametrize(
    ("text", "says"), [("[1]", "it is no JSON object"), ("{}", "it has no 'benchmark'"), ("{", "not valid JSON")]
)
def test_a_file_that_is_no_results_is_refused(tmp_path, text, says):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_results(path)


def test_missing_results_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path / "results.json")
