"""What parses bytes that anybody may have made, as targets: for fuzz_run.py, and for the replay of the corpus."""

import base64
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.quality.reference_files import read_reference, reference_extractor
from fewstep.eval.quality.references import write_features
from fewstep.eval.report.rating import collect
from fewstep.eval.report.regression import compare, read_results
from fewstep.files import read_json, sha256_json, write_json
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.data.decode import Decoder, pillow_warnings
from fewstep.pipeline.training.checkpoint import verify_checkpoint

HERE = Path(__file__).parent
CORPUS = HERE / "corpus.json"


def _reference(suffix: str) -> Callable[[Path, bytes], None]:
    def target(folder: Path, data: bytes) -> None:
        path = folder / f"reference{suffix}"
        path.write_bytes(data)
        reference_extractor(path)
        read_reference(path, load_extractor("digits-cnn", None, "cpu"))

    return target


def _rating(folder: Path, data: bytes) -> None:
    (folder / "rating.json").write_bytes(data)
    collect([folder / "rating.json"])


def _config(folder: Path, data: bytes) -> None:
    (folder / "config.yaml").write_bytes(data)
    load_config(folder / "config.yaml")


def _checkpoint(folder: Path, data: bytes) -> None:
    """As it is, and with the hash of its own that a manifest ends with put right."""
    step = folder / "step-000000001"
    step.mkdir(exist_ok=True)
    (step / "MANIFEST.json").write_bytes(data)
    try:
        verify_checkpoint(step)
    except UserError:
        manifest = read_json(step / "MANIFEST.json", {})
        manifest.pop("sha256", None)
        write_json(step / "MANIFEST.json", manifest | {"sha256": _hash(manifest)})
        verify_checkpoint(step)


def _hash(value: object) -> str:
    try:
        return sha256_json(value)
    except ValueError:  # NaN and infinity
        raise UserError("manifest", None, "has no hash") from None


def _image(folder: Path, data: bytes) -> None:
    with pillow_warnings():
        Decoder(image_size=8, channels=3).decode("image", data)


def _results(folder: Path, data: bytes) -> None:
    (folder / "results.json").write_bytes(data)
    value = read_results(folder / "results.json")
    compare(value, value)


TARGETS: dict[str, Callable[[Path, bytes], None]] = {
    "safetensors": _reference(".safetensors"),
    "npz": _reference(".npz"),
    "pt": _reference(".pt"),
    "rating": _rating,
    "config": _config,
    "checkpoint": _checkpoint,
    "image": _image,
    "results": _results,
}


def sound() -> dict[str, list[bytes]]:
    """Inputs that each target reads without an error: what a fuzzer starts from."""
    extractor = load_extractor("digits-cnn", None, "cpu")
    features = extractor(digits()[0][:8])
    moments = {"mu": features.numpy().mean(0), "sigma": np.cov(features.numpy(), rowvar=False)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = {"dataset": "digits", "split": "train", "count": 8, "sha256": "0" * 64}
        write_features(folder / "r.safetensors", features, facts, extractor)
        np.savez(folder / "r.npz", **moments)
        np.savez_compressed(folder / "c.npz", **moments)
        torch.save(moments, folder / "r.pt")
        torch.save(features, folder / "f.pt")
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest: dict[str, Any] = {"format": 2, "step": 1, "config_hash": "c0", "losses": [0.5], "files": {}}
    manifest["levels"] = {"sums": [0.5], "counts": [1.0]}
    images = []
    for form, mode in (("PNG", "L"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")):
        buffer = io.BytesIO()
        Image.new(mode, (9, 9)).save(buffer, form)
        images.append(buffer.getvalue())
    answers = [{"rival": "teacher", "chose": "student"}, {"rival": "real", "chose": "real"}]
    return {
        "safetensors": [files["r.safetensors"]],
        "npz": [files["r.npz"], files["c.npz"]],
        "pt": [files["r.pt"], files["f.pt"]],
        "rating": [json.dumps({"format": 1, "page": "p", "rater": "r", "answers": answers}).encode()],
        "config": [b"preset: digits\nseed: 3\ndata:\n  image_size: 8\neval.samplers: [student@1]\n"],
        "checkpoint": [json.dumps(manifest | {"sha256": sha256_json(manifest)}).encode()],
        "image": images,
        "results": [(HERE.parents[1] / "eval/results/digits/results.json").read_bytes()],
    }


def corpus() -> dict[str, dict[str, bytes]]:
    """{target: {name: input}} of the inputs that once were findings, or are like one."""
    kept = json.loads(CORPUS.read_text())
    return {name: {key: base64.b64decode(text) for key, text in inputs.items()} for name, inputs in kept.items()}
