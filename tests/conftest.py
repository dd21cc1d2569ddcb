"""What every test shares: no network, one thread per process, the device, the real data."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library of the hub is imported: a test never reaches the net
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order on any number of processors
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from torch import Tensor

from chromium import Browser
from fewstep.teachers.interfaces import NONE, Condition, Space, one_each

if TYPE_CHECKING:
    from diffusers import UNet2DModel


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def no_cold_starts() -> Iterator[None]:
    """The cold starts of a run's models are made up: two processes for each run would double the suite's time."""
    with pytest.MonkeyPatch.context() as patch:
        made_up = {"import_s": 2.5, "load_s": 0.75, "first_image_s": 0.125}
        patch.setattr("fewstep.pipeline.sampling.cold_start.cold_start", lambda text, device, *, trust: made_up)
        yield


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """real_data("cifar10"): the path of a real data set or of weights; the test skips if there is none."""

    def path(name: str) -> Path:
        folder = os.environ.get("FEWSTEP_DATA", "~/.cache/fewstep-data")
        found = Path(folder).expanduser() / name
        if not found.exists():
            pytest.skip(f"real data: no {name} in {folder} (set FEWSTEP_DATA)")
        return found

    return path


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test: the CPU, or CUDA when FEWSTEP_TEST_DEVICE=cuda (no GPU then is a failure)."""
    name = os.environ.get("FEWSTEP_TEST_DEVICE", "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("FEWSTEP_TEST_DEVICE=cuda, and torch sees no CUDA device")
    return torch.device(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that need real data, leave out soak unless -m names it, and skip gpu without a CUDA device."""
    for item in items:
        if "real_data" in item.fixturenames:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.data)
    if "soak" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


TINY = {
    "name": "digits",
    "device": "cpu",
    "teacher.network.channels": "[16, 32]",
    "teacher.network.layers_per_block": 1,
    "teacher.train.kimg": 0.64,
    "teacher.train.batch_size": 32,
    "teacher.train.warmup_kimg": 0.1,
    "teacher.train.checkpoint_kimg": 0.32,
    "teacher.train.log_every": 1,
    "student.train.kimg": 0.32,
    "trajectories.number": 32,
    "trajectories.steps": 4,
    "student.train.batch_size": 32,
    "student.train.warmup_kimg": 0.1,
    "student.train.checkpoint_kimg": 0.16,
    "student.train.log_every": 1,
    "student.refit_steps": 30,
    "student.search_images": 32,
    "eval.images": 66,
    "eval.batch_size": 40,
    "eval.seed_blocks": 2,
    "eval.kid_subset_size": 20,
    "eval.latency_runs": 3,
    "eval.latency_seconds": 0.2,
    "eval.throughput_batch_sizes": "[16]",
    "eval.samplers": '["teacher@ddim:2", "student@1", "student@2"]',
}
"""The digits, from teacher to report, with everything as small as it gets: the images are noise."""


def tiny_arguments(out: Path, **changes: object) -> list[str]:
    """Arguments of `fewstep run` for a tiny run in `out`; `changes` names keys with __ for the dots."""
    values = TINY | {"out": out} | {name.replace("__", "."): value for name, value in changes.items()}
    if "teacher.source" in values:  # with which a teacher has no other settings
        values = {
            key: value for key, value in values.items() if not key.startswith("teacher.") or key == "teacher.source"
        }
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="session")
def tiny() -> Callable[..., list[str]]:
    """`tiny(out, teacher__prediction="epsilon")`: arguments of a tiny run."""
    return tiny_arguments


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """once(name, make): a folder that `make(folder)` fills, once for all processes that test; to be read."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(made, ignore_errors=True)  # of one that failed
                made.mkdir()
                make(made)
                done.touch()
        return made

    return folder


@pytest.fixture(scope="session")
def tiny_run(once: Once) -> Path:
    """The folder of a finished tiny run, OUT/digits, to be read: a test that changes it works on a copy."""
    from fewstep.pipeline.cli.main import main

    def make(out: Path) -> None:
        assert main(["run", *tiny_arguments(out)]) == 0

    return once("tiny", make) / "digits"


@pytest.fixture(scope="session")
def tiny_unet() -> Callable[..., "UNet2DModel"]:
    """tiny_unet(seed=0, dropout=0.0): a UNet for 1x8x8 images, 0.07 M parameters."""
    from fewstep.teachers.network import build_unet  # seconds of imports that most tests do without

    def build(seed: int = 0, dropout: float = 0.0) -> "UNet2DModel":
        return build_unet(
            (1, 8, 8),
            channels=(16, 16),
            layers_per_block=1,
            attention=(False, False),
            norm_groups=8,
            dropout=dropout,
            seed=seed,
        )

    return build


class GaussianDenoiser:
    """D(x; s) = (v*x + s^2*m) / (v + s^2), exact for pixels that are independently N(m, v)."""

    space = Space(shape=(1, 4, 4), sigma_min=0.002, sigma_max=80.0)

    def __init__(self, mean: float, variance: float) -> None:
        self.mean, self.variance = mean, variance

    def __call__(self, x: Tensor, sigma: Tensor | float, condition: Condition = NONE) -> Tensor:
        s = one_each(sigma, x).to(x.dtype).reshape(-1, 1, 1, 1)
        return (self.variance * x + s**2 * self.mean) / (self.variance + s**2)


@pytest.fixture(scope="session")
def gaussian() -> type[GaussianDenoiser]:
    """gaussian(mean, variance): the exact denoiser of Gaussian data."""
    return GaussianDenoiser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Headless Chromium, whose downloads go to tmp_path/downloads."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("needs chromium and chromedriver")
    (tmp_path / "downloads").mkdir()
    browser = Browser(driver, chromium, tmp_path / "downloads")
    yield browser
    browser.close()
