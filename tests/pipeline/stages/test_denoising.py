"""What a denoiser's errors are held against: theory for Gaussian data, and what a wrong prediction type looks like."""

from types import SimpleNamespace

import pytest
import torch

from fewstep.pipeline.stages.denoising import (
    LARGEST,
    Filters,
    compared,
    denoise,
    fit_filters,
    likely_other,
    other_readings,
    verdict,
    worse_at,
)
from fewstep.teachers.interfaces import NONE, Space
from fewstep.teachers.network import build_scheduler
from fewstep.teachers.preconditioned import Preconditioned
from fewstep.teachers.scaling import EDM, SCALINGS
from fewstep.teachers.schedule import vp_table

SIGMAS = [0.01, 0.05, 0.2, 1.0, 5.0, 80.0]
CPU = torch.device("cpu")
TABLE = vp_table(build_scheduler(1000, "squaredcos_cap_v2", "v_prediction").alphas_cumprod)


def gaussian_images(count, factor, mean=0.1):
    """uint8 [count, 1, 4, 4] of pixels N(mean, factor @ factor.T) in [-1, 1]."""
    x = mean + torch.randn(count, 16, generator=torch.Generator().manual_seed(1)) @ factor.T
    return (x * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).reshape(count, 1, 4, 4)


def test_on_gaussian_data_the_linear_filter_is_the_exact_denoiser(gaussian):
    images = gaussian_images(8512, 0.2 * torch.eye(16))
    filters = fit_filters(images[:512], images[512:])
    errors, seconds = denoise(gaussian(0.1, 0.04), images[:512], NONE, SIGMAS, CPU)
    assert seconds > 0
    for sigma, error in zip(SIGMAS, errors, strict=True):
        # the standard error of an error over 8,192 pixels is 0.8 %: five of them, and 0.1 % for the filter's own
        theory = (sigma**2 * 0.04 / (sigma**2 + 0.04)) ** 0.5
        assert error[""] == pytest.approx(theory, rel=0.04)
        assert filters.linear(sigma) == pytest.approx(theory, rel=0.04)
        assert filters.shrinkage(sigma) == pytest.approx(theory, rel=0.04)
        assert compared(filters, sigma, error)["against"] != "worse"
    rows = [compared(filters, sigma, {"": 1.02 * filters.shrinkage(sigma)}) for sigma in SIGMAS]
    assert verdict(rows, "edm").startswith("it denoises as well as a linear filter of the data and nowhere better")


def test_the_linear_filter_knows_how_pixels_go_together():
    factor = torch.full((16, 16), 0.04) + 0.02 * torch.eye(16)
    images = gaussian_images(20_512, factor)
    filters = fit_filters(images[:512], images[512:])
    values = torch.linalg.eigvalsh(factor @ factor.T)
    for sigma in SIGMAS:
        theory = float((sigma**2 * values / (sigma**2 + values)).mean().sqrt())
        assert filters.linear(sigma) == pytest.approx(theory, rel=0.1)  # 512 draws of one large eigenvalue: 3 % each
    assert (filters.linear(0.2) or 1) < 0.6 * filters.shrinkage(0.2)


def test_the_mean_is_that_of_the_class_where_there_are_labels():
    images = gaussian_images(2000, 0.1 * torch.eye(16), mean=0.0)
    labels = torch.arange(2000) % 2
    images[labels == 1] += 60
    within = fit_filters(images[:500], images[500:], (labels[:500], labels[500:]))
    assert within.shrinkage(80.0) == pytest.approx(0.1, rel=0.05)
    assert fit_filters(images[:500], images[500:]).shrinkage(80.0) > 0.2
    others = torch.cat([images[500:][labels[500:] == 0][:9], images[500:][labels[500:] == 1]])
    of_others = (torch.arange(len(others)) >= 9).long()  # of a class with nine others the mean of all is taken
    assert fit_filters(images[:500], others, (labels[:500], of_others)).shrinkage(80.0) > 0.3


def test_too_few_others_for_a_covariance_leave_the_shrinkage():
    images = gaussian_images(30, 0.2 * torch.eye(16))
    filters = fit_filters(images[:20], images[20:])
    assert filters.linear(0.01) == filters.shrinkage(0.01)
    assert filters.linear(0.01) == pytest.approx(0.01, rel=1e-2)


def test_images_of_too_many_numbers_have_no_covariance():
    images = torch.randint(0, 256, (4, 1, 65, LARGEST // 64), dtype=torch.uint8)
    filters = fit_filters(images[:2], images[2:])
    assert filters.eigenvalues is None
    row = compared(filters, 1.0, {"": 0.1})
    assert (row["linear"], row["against"]) == (None, "better")
    assert "better than shrinking towards the mean image at sigma 1 (1 of 1 levels)" in verdict([row], "edm")


class Fixed(torch.nn.Module):
    """A network whose output is a function of its inputs and nothing else."""

    def forward(self, x, t):
        return SimpleNamespace(sample=(3 * x).sin() + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)


@pytest.mark.parametrize("own", ["epsilon", "v_prediction", "sample"])
def test_another_reading_is_what_the_model_would_be_under_that_type(own):
    space = Space(shape=(1, 4, 4), sigma_min=0.002, sigma_max=80.0, table=TABLE)
    models = {
        name: Preconditioned(Fixed(), SCALINGS[name](TABLE), space) for name in ("epsilon", "v_prediction", "sample")
    }
    sigma = torch.tensor(SIGMAS)
    x = torch.randn(len(SIGMAS), 1, 4, 4, generator=torch.Generator().manual_seed(0)) * (1 + sigma).reshape(-1, 1, 1, 1)
    read = other_readings(models[own], x, sigma, models[own](x, sigma))
    assert {*read, own} == {*models}
    for name, estimate in read.items():
        torch.testing.assert_close(estimate, models[name](x, sigma), rtol=1e-4, atol=1e-4)
    assert other_readings(Preconditioned(Fixed(), EDM(), space), x, sigma, x) == {}


LEVELS = [0.00643, 0.0522, 0.425, 1.21, 3.45, 9.84, 80.0]
LINEAR = [0.00631, 0.0460, 0.250, 0.412, 0.513, 0.537, 0.541]
V_NETWORK = {
    "v_prediction": [0.00623, 0.0387, 0.189, 0.370, 0.508, 0.540, 0.550],
    "epsilon": [0.00623, 0.0387, 0.239, 0.954, 3.59, 11.0, 91.0],
    "sample": [0.902, 1.09, 1.34, 1.43, 1.42, 1.41, 1.41],
}
EPSILON_NETWORK = {
    "epsilon": [0.00639, 0.0407, 0.202, 0.388, 0.547, 0.804, 5.90],
    "v_prediction": [0.00639, 0.0407, 0.244, 0.677, 1.11, 1.23, 1.29],
    "sample": [0.863, 1.01, 1.13, 1.16, 1.23, 1.29, 1.32],
}
"""Errors of two digits teachers, of 90 and 45 kimg, and what they are under other types."""


def rows_of(network, configured):
    filters = [Filters(power=torch.tensor([1.0]), eigenvalues=None)] * len(LEVELS)
    found = []
    for index, (sigma, bar) in enumerate(zip(LEVELS, LINEAR, strict=True)):
        errors = {("" if name == configured else name): values[index] for name, values in network.items()}
        row = compared(filters[index], sigma, errors) | {"linear": bar}
        found.append(row)
    return found


@pytest.mark.parametrize("configured", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("network", "true"), [(V_NETWORK, "v_prediction"), (EPSILON_NETWORK, "epsilon")])
def test_a_wrong_prediction_type_is_named_and_a_right_one_is_not(network, true, configured):
    rows = rows_of(network, configured)
    assert likely_other(rows, configured) == (None if configured == true else true)
    said = verdict(rows, configured)
    where = "0.00643 to 3.45 (5 of 7 levels)" if network is V_NETWORK else "0.0522 to 1.21 (3 of 7 levels)"
    assert said.endswith(f"denoises better than a linear filter of the data at sigma {where}")
    assert ("prediction_type in scheduler_config.json is probably wrong" in said) == (configured != true)


def test_large_errors_at_large_sigma_are_no_sign_of_another_type():
    network = EPSILON_NETWORK | {"epsilon": [*EPSILON_NETWORK["epsilon"][:5], 5.0, 40.0]}
    assert likely_other(rows_of(network, "epsilon"), "epsilon") is None


def test_a_type_that_is_nowhere_better_is_not_the_likely_one():
    rest = [9.0] * 5
    network = {"epsilon": [0.006, 1.0, *rest], "v_prediction": [0.0064, 0.047, *rest], "sample": [9.0, 0.045, *rest]}
    assert likely_other(rows_of(network, "epsilon"), "epsilon") is None
    assert likely_other(rows_of(network, "sample"), "sample") == "epsilon"


def test_what_is_nowhere_better_is_called_so():
    rows = [row | {"error": 2 * row["error"], "against": "worse"} for row in rows_of(V_NETWORK, "v_prediction")]
    said = verdict([row | {"read_as": {}} for row in rows], "v_prediction")
    assert said.startswith("it denoises nowhere better than a linear filter of the data: its prediction type, scaling")


@pytest.mark.parametrize(
    ("prediction", "marks", "expected"),
    [
        ("epsilon", "equal better better worse worse", "expected"),
        ("ve", "better better equal worse worse", "expected"),
        ("epsilon", "worse better better better better", "unexpected"),
        ("epsilon", "worse worse worse worse worse", "unexpected"),
        ("v_prediction", "better better better better worse", "unexpected"),
        ("epsilon", "better better better equal equal", None),
    ],
)
def test_being_worse_is_expected_of_noise_predictions_at_large_sigma_alone(prediction, marks, expected):
    ratio = {"better": 0.9, "equal": 1.0, "worse": 2.0}
    rows = [
        {"sigma": sigma, "linear": 1.0, "shrinkage": 1.0, "error": ratio[mark], "against": mark, "read_as": {}}
        for sigma, mark in zip((0.01, 0.1, 1.0, 10.0, 80.0), marks.split(), strict=True)
    ]
    assert worse_at(rows, prediction) == expected


def test_levels_that_are_not_neighbours_are_two_ranges():
    rows = [row | {"read_as": {}} for row in rows_of(V_NETWORK, "v_prediction")]
    rows[2] |= {"error": 1.0}
    assert "at sigma 0.00643 to 0.0522 and 1.21 to 3.45 (4 of 7 levels)" in verdict(rows, "v_prediction")
