"""What a user installs: the wheel made from the sdist holds every source and data file, and no more."""

import configparser
import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fewstep

FOLDERS = {
    "fewstep": "src/fewstep",
    "fewstep/pipeline": "pipeline",
    "fewstep/teachers": "teachers",
    "fewstep/students": "students",
    "fewstep/eval": "eval",
}
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def build(hook: str, folder: Path, out: Path) -> Path:
    """Run the build backend in this environment, so that nothing is fetched; the file it made."""
    command = [sys.executable, "-c", BUILD, hook, str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from."""
    copy = tmp_path_factory.mktemp("build") / "copy"
    for name in ("src/fewstep", "pipeline", "teachers", "students", "eval", "tests"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"):
        shutil.copy(root / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def package_files(copy: Path) -> set[str]:
    """Each source and data file of the package folders, by its name in the wheel; kept results are not among them."""
    return {
        f"{target}/{path.relative_to(copy / folder).as_posix()}"
        for target, folder in FOLDERS.items()
        for path in (copy / folder).rglob("*")
        if path.is_file() and not path.name.startswith(".") and (copy / "eval" / "results") not in path.parents
    }


@pytest.fixture(scope="module")
def wheel(copy: Path, package_files: set[str]) -> zipfile.ZipFile:
    """The wheel, built from the sdist of the copy, a run and a virtual environment beside the packages."""
    assert package_files
    out, sdist = copy.parent / "dist", copy.parent / "sdist"
    for decoy in ("runs/digits/config.json", ".venv/lib/module.py", "pipeline/config/presets/notes.tmp"):
        (copy / decoy).parent.mkdir(parents=True, exist_ok=True)
        (copy / decoy).write_text("{}")
    with tarfile.open(build("build_sdist", copy, out)) as archive:
        archive.extractall(sdist, filter="data")
    (unpacked,) = sdist.iterdir()
    return zipfile.ZipFile(build("build_wheel", unpacked, out))


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile, package_files: set[str]) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside - package_files == set(), "in the wheel, not of the package"
    assert package_files - inside == set(), "of the package, not in the wheel (tool.setuptools.package-data)"


def test_wheel_holds_each_kind_of_data(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "fewstep/py.typed" in names
    for start, end in (
        ("fewstep/pipeline/config/presets/digits", ".yaml"),
        ("fewstep/eval/report/templates/", ""),
        ("fewstep/eval/features/weights/", ".safetensors"),
    ):
        assert any(name.startswith(start) and name.endswith(end) for name in names), start


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    info = f"fewstep-{fewstep.__version__}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["Version"] == fewstep.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert {"tensorboard", "export", "dinov2", "dev", "fuzz"} == set(metadata.get_all("Provides-Extra", []))

    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert entries["console_scripts"]["fewstep"] == "fewstep.pipeline.cli.main:main"
