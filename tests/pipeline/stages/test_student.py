"""What the student stage says of a conversion."""

import pytest

from fewstep.pipeline.stages.student import _judged


@pytest.mark.parametrize(
    ("error", "sigma", "prediction", "says"),
    [
        (0.01, 80.0, "epsilon", ""),
        (6.5, 80.0, "epsilon", "That is expected"),
        (6.5, 80.0, "ve", "That is expected"),
        (6.5, 0.01, "epsilon", "not expected"),
        (6.5, 80.0, "v_prediction", "not expected"),
    ],
)
def test_a_large_difference_from_the_teacher_is_called_expected_or_not(error, sigma, prediction, says):
    said = _judged(error, sigma, prediction)
    assert says in said
    assert bool(said) == bool(says)
