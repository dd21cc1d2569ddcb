"""What lies beside a graph runs without fewstep: it makes the same images, and starts at once."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from same_images import expect_images

import fewstep


@pytest.fixture
def sample(root):
    """The module that is copied out."""
    spec = importlib.util.spec_from_file_location("sample", root / "pipeline/export/standalone/sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(path):
    """uint8 [N, H, W] of a picture of 3 x 3 images of 8 x 8."""
    return np.asarray(Image.open(path)).reshape(3, 8, 3, 8).transpose(0, 2, 1, 3).reshape(9, 8, 8)


def expect_picture(path, run, steps, seed, labels=None):
    """That of `fewstep sample`."""
    expect_images(pictures(path), fewstep.load_student(run), steps, seed, labels)


@pytest.mark.parametrize("size", [64, 784, 3072, 25, 63])
def test_its_noise_is_torch_s(sample, size):
    for key in (0, 7 * 2**20 + 3, 2**32 - 1):
        generator, bits = torch.Generator().manual_seed(key), np.random.RandomState(key)
        for _ in range(2):
            theirs = torch.randn(size, generator=generator).numpy()
            np.testing.assert_allclose(sample.normal(bits, (size,)), theirs, atol=2e-6)


def test_python_makes_the_images_of_fewstep_at_once_without_torch(with_graphs, tmp_path):
    folder, out, seconds = with_graphs / "export", tmp_path / "grid.png", []
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    code += "assert not {'torch', 'fewstep'} & set(sys.modules)"
    for _ in range(3):
        started = time.perf_counter()
        graph = folder / "student-2step.onnx"
        subprocess.run([sys.executable, "-c", code, folder / "sample.py", graph, "9", "3", out], check=True)
        seconds.append(time.perf_counter() - started)
    expect_picture(out, with_graphs, 2, 3)
    assert min(seconds) < 1.5


@pytest.mark.parametrize("labels", [None, [3, 7]])
def test_python_makes_the_images_of_classes(conditional, tmp_path, labels):
    folder, out = conditional / "export", tmp_path / "grid.png"
    given = [] if labels is None else ["--labels", *map(str, labels)]
    subprocess.run(
        [sys.executable, folder / "sample.py", folder / "student-2step.onnx", "9", "3", out, *given], check=True
    )
    expect_picture(out, conditional, 2, 3, labels)


def test_classes_that_are_not_there_are_refused(conditional, with_graphs, sample):
    session = onnxruntime.InferenceSession(conditional / "export" / "student-1step.onnx")
    for labels in ([10], [3, -1]):
        with pytest.raises(ValueError, match="this student has the classes 0 to 9"):
            sample.generate(session, 2, 0, labels)
    graph = with_graphs / "export" / "student-1step.onnx"
    command = [sys.executable, with_graphs / "export" / "sample.py", graph, "--labels", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "labels [0]: this student is unconditional: leave labels out" in done.stderr) == (2, True)


@pytest.fixture
def compiled(root, tmp_path):
    """Runs sample.cpp, compiled here, with arguments."""
    place = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if not shutil.which("g++") or not (place / "onnxruntime_cxx_api.h").is_file() or library is None:
        pytest.skip(f"needs g++, libonnxruntime and its headers in {place} (set ONNXRUNTIME_INCLUDE)")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    source, program = root / "pipeline/export/standalone/sample.cpp", tmp_path / "sample"
    command = ["g++", "-std=c++17", "-Wall", "-Werror", "-O1", source, "-I", place, "-o", program]
    subprocess.run([*command, f"-L{tmp_path}", "-lonnxruntime"], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    return lambda *arguments: subprocess.run([program, *arguments], capture_output=True, env=environment)


@pytest.mark.parametrize("steps", [1, 2])
def test_c_plus_plus_makes_the_images_of_fewstep(with_graphs, conditional, compiled, tmp_path, steps):
    for run, labels in ((with_graphs, []), (conditional, []), (conditional, [3, 7])):
        made = compiled(run / "export" / f"student-{steps}step.onnx", "9", "3", *map(str, labels))
        (tmp_path / "grid.pgm").write_bytes(made.stdout)
        expect_picture(tmp_path / "grid.pgm", run, steps, 3, labels or None)
    failed = compiled("absent.onnx")
    assert (failed.returncode, failed.stderr.count(b"\n")) == (1, 1)
    failed = compiled(conditional / "export" / f"student-{steps}step.onnx", "9", "3", "10")
    assert (failed.returncode, b"this student has 10 classes" in failed.stderr) == (1, True)
