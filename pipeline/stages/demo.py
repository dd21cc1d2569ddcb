"""`fewstep demo RUN -o DIR`: a static page that makes a student's images in the visitor's browser."""

import http.server
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.files import read_json, staged_folder, write_json
from fewstep.pipeline.export.names import FORMATS, PARITY
from fewstep.pipeline.export.provenance import OF_CLASSES, provenance_of
from fewstep.pipeline.export.web_model import WEIGHTS, write_shared
from fewstep.pipeline.export.web_runtime import VERSION, put_runtime
from fewstep.pipeline.stages.export import export, export_folder
from fewstep.pipeline.stages.manifest import MANIFEST, model_hash, read_manifest, verify_outputs
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.students.load import student_folder

STEPS = (1, 2)
MOST_BYTES = 4_000_000
"""Of the weights of a page in float32; longer ones are kept as float16."""
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""With these headers a browser lets WebAssembly use several threads."""


def demo(run: Path, out: Path, *, student: str | None = None, runtime: str = "npm") -> Path:
    """Write the page into `out`, a new folder: index.html, the models, onnxruntime-web and all else that it loads.

    The graphs are those of the student's export where it has them, else they are made as one. `runtime`: see
    `put_runtime`.
    """
    out = out.absolute()
    if out == Path.cwd() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError("--out", str(out), "must be a new or an empty folder, and not the current one")
    folder = student_folder(run, student)
    with staged_folder(out) as stage:
        (stage / "runtime").mkdir()
        (stage / "model").mkdir()
        put_runtime(runtime, stage / "runtime")  # before what takes longer: it can fail
        with tempfile.TemporaryDirectory() as scratch:
            exported = _exported(run, folder, Path(scratch) / "export")
            with raising_signals():
                _write(stage, exported, folder.name)
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    beside = sum(sizes) - sum(path.stat().st_size for path in (out / "runtime").iterdir())
    say(f"{out}: {beside / 1e6:.2f} MB beside the runtime's {(sum(sizes) - beside) / 1e6:.1f} MB, for any static host")
    return out


def _exported(run: Path, folder: Path, scratch: Path) -> Path:
    """A folder with the graphs of a page: the student's export, or one that is made in `scratch`."""
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    formats = {"onnx", *(["onnx-fp16"] if weights > MOST_BYTES else [])}
    target = export_folder(run, folder)
    if (target / MANIFEST).is_file():
        inputs = read_manifest(target)["inputs"]
        same = inputs["student"] == model_hash(folder) and inputs["output"] == "float32"
        if same and formats <= set(inputs["formats"]) and set(STEPS) <= set(inputs["steps"]):
            verify_outputs(target)
            return target
    return export(run, [name for name in FORMATS if name in formats], STEPS, student=folder.name, out=scratch)


def _write(stage: Path, exported: Path, student: str) -> None:
    found = {
        (each["format"], each["steps"]): each for each in read_json(exported / PARITY)["files"] if not each["fault"]
    }
    plain = exported / found["onnx", 1]["file"]
    half = plain.stat().st_size > MOST_BYTES and all(("onnx-fp16", steps) in found for steps in STEPS)
    kind = "onnx-fp16" if half else "onnx"
    paths = {f"{student}-{steps}step.onnx": exported / found[kind, steps]["file"] for steps in STEPS}
    hashes = write_shared(paths, stage / "model")
    facts = provenance_of(plain)
    models = [
        {"file": name, "steps": steps, "inputs": provenance_of(path)["inputs"]}
        for steps, (name, path) in zip(STEPS, paths.items(), strict=True)
    ]
    about: dict[str, Any] = {
        "name": facts["run"],
        "what": "Images that a one-step generator makes in your browser:",
        "precision": "weights in float16" if half else "weights in float32",
        "models": models,
        "weights": WEIGHTS,
        "sha256": hashes,
        "runtime": VERSION,
    }
    said = ("shape", "version", "student_hash", *(OF_CLASSES if "num_classes" in facts else ()))
    write_json(stage / "demo.json", about | {key: facts[key] for key in said})
    for name in ("index.html", "style.css", "app.js", "noise.js"):
        shutil.copyfile(str(files("fewstep.pipeline.export") / "page" / name), stage / name)
    headers = "".join(f"  {name}: {value}\n" for name, value in ISOLATION.items())
    (stage / "_headers").write_text(f"/*\n{headers}", encoding="utf-8")  # some static hosts read it


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files with the headers that threads need, and no line for each request."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def handler(folder: Path) -> Callable[..., http.server.SimpleHTTPRequestHandler]:
    """What answers requests for the files of a page."""
    return partial(_Handler, directory=str(folder))


def listen(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of a page, for this machine alone; UserError: the port is in use."""
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler(folder))
    except OSError as error:
        raise UserError("--port", port, f"cannot be listened on ({error.strerror}): give another one") from None


def serve(server: http.server.ThreadingHTTPServer) -> None:
    """Answer until it is interrupted."""
    with server:
        say(f"http://127.0.0.1:{server.server_address[1]}/ until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")
