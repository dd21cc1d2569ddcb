"""What the report's tests share: a finished run folder with digits as grids and made-up measurements."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

PROTOCOL_HASH = "5f0c" * 16
PROTOCOL = {
    "reference": {"dataset": "digits", "split": "train", "count": 1797, "sha256": "ab12" * 16},
    "extractor": {"name": "digits-cnn", "sha256": "cd34" * 16, "resize": "none"},
    "images": 1000,
    "encoding": "uint8, round(x*127.5+127.5)",
    "hash": PROTOCOL_HASH,
}
# name, label, kind, nfe, fd mean, fd sd, ms per image
SAMPLERS = (
    ("teacher@ddpm:1000", "Teacher, DDPM, 1000 steps", "teacher", 1000, 24.1, None, 278.0),
    ("teacher@ddim:50", "Teacher, DDIM, 50 steps", "teacher", 50, 22.6, 0.71, 13.9),
    ("teacher@ddim:10", "Teacher, DDIM, 10 steps", "teacher", 10, 41.8, 1.12, 2.81),
    ("teacher@dpmsolver++:20", "Teacher, DPM-Solver++, 20 steps", "teacher", 20, 23.9, 0.64, 5.62),
    ("teacher@heun:18", "Teacher, Heun, 18 steps", "teacher", 35, 23.2, 0.58, 9.77),
    ("student@1", "Student, 1 step", "student", 1, 33.4, 0.92, 0.342),
    ("student@2", "Student, 2 steps", "student", 2, 28.8, 0.83, 0.631),
    ("student@4", "Student, 4 steps", "student", 4, 27.9, 0.49, 1.19),
)
ENVIRONMENT = {
    "device": "cpu",
    "processor": "Example Processor 3000",
    "threads": 2,
    "python": "3.11.9",
    "torch": "2.15.0",
    "diffusers": "0.42.1",
    "torch_fidelity": "0.4.0",
    "fewstep": "0.1.0",
    "platform": "Linux x86_64",
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run, small and plausible, for the report."""
    return make_run(tmp_path / "run")


def make_run(folder: Path, name: str = "digits") -> Path:
    """Write every file that a report reads into `folder` and return it."""
    random = np.random.default_rng(0)
    _write(folder / "config.json", _config(name))
    _write(folder / "data.json", {"source": "digits", "count": 1797, "shape": [1, 8, 8], "sha256": "ab12" * 16})
    for stage, seconds in (("teacher", 201.4), ("students/student", 262.9), ("eval", 171.0)):
        _write(folder / stage / "manifest.json", {"format": 1, "stage": stage, "seconds": seconds})
    for stage, low in (("teacher", 0.11), ("students/student", 0.02)):
        _write_log(folder / "logs" / f"{stage}.jsonl", low, random)
    digits = load_digits(return_X_y=True)[0].reshape(-1, 8, 8) * (255 / 16)
    for index, sampler in enumerate(SAMPLERS):
        slug = sampler[0].replace("@", "_").replace(":", "_")
        _write(folder / "eval" / "samplers" / f"{slug}.json", _sampler(*sampler))
        noisy = digits[100:164] + random.normal(0, 6 + 3 * index, (64, 8, 8))
        _save_grid(folder / "eval" / "grids" / f"{slug}.png", noisy)
    _save_grid(folder / "eval" / "grids" / "real.png", digits[:64])
    _save_grid(folder / "eval" / "neighbours.png", digits[[*range(16), *range(30, 46)]], 16)
    columns = [
        {
            "image": i,
            "training_image": 2 * i,
            "distance": 130.0 + 9 * i,
            "picked": "first" if i < 8 else "closest",
        }
        for i in range(16)
    ]
    _write(
        folder / "eval" / "neighbours.json",
        {"format": 1, "sampler": "student@1", "threshold": 135.0, "columns": columns},
    )
    _write(folder / "eval" / "benchmark.json", _benchmark())
    return folder


FAMILY = {"cd": ((20.0, 21.0, 20.5), (15.0, 17.0, 16.0)), "ect": ((30.0, 31.0, 30.5), (15.5, 17.5, 16.5))}
"""FD of each training at one and at two steps."""


@pytest.fixture
def family_dir(tmp_path: Path) -> Path:
    """The run of `run_dir` with the students cd and ect in place of its own, three trainings each; see FAMILY."""
    folder = make_run(tmp_path / "run", "family")
    config, benchmark = _config("family"), _benchmark()
    student = config.pop("student") | {"training_seeds": 3}
    config["students"] = {name: student | {"method": {"name": name}} for name in FAMILY}
    _write(folder / "config.json", config)
    rows = [row for row in SAMPLERS if row[2] == "teacher"]
    rows += [("teacher@ddim:1", "Teacher, DDIM, 1 step", "teacher", 1, 300.0, 1.0, 0.34)]
    random, names = np.random.default_rng(1), [row[0] for row in rows]
    _write(folder / "eval" / "samplers" / "teacher_ddim_1.json", _sampler(*rows[-1]))
    for name, values in FAMILY.items():
        for number in range(3):
            training = name if number == 0 else f"{name}-{number + 1}"
            cost = {"student": 1, "target": 1, "teacher": 2 if name == "cd" else 0, "jvp": 0}
            cost["forward_equivalents"] = 4 + cost["teacher"]
            manifest = {"format": 1, "seconds": 90.0, "cost": cost, "inputs": {"weights": {"teacher": "ab"}}}
            _write(folder / "students" / training / "manifest.json", manifest)
            log = folder / "logs" / "students" / f"{training}.jsonl"
            _write_log(log, 0.02, random)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            for line in lines[::100]:
                line["kid_5"] = 5 + 20 / (1 + line["kimg"]) + number
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))
            for steps in (1, 2):
                names.append(f"{training}@{steps}")
                label = f"{training}, {steps} step{'s' * (steps > 1)}"
                row = _sampler(names[-1], label, "student", steps, values[steps - 1][number], 0.5, 0.3 * steps)
                row["timing"] = row["timing"] if number == 0 else None
                _write(folder / "eval" / "samplers" / f"{training}_{steps}.json", row)
    for name in names:
        grid = folder / "eval" / "grids" / f"{name.replace('@', '_').replace(':', '_')}.png"
        if not grid.exists():
            grid.write_bytes((folder / "eval" / "grids" / "student_1.png").read_bytes())
    speed = {"against_ddpm": None, "against_cheapest_within_10pct": None}
    benchmark |= {"sampler_order": names, "speed": {name: speed for name in names if not name.startswith("teacher")}}
    _write(folder / "eval" / "benchmark.json", benchmark)
    neighbours = json.loads((folder / "eval" / "neighbours.json").read_text())
    _write(folder / "eval" / "neighbours.json", neighbours | {"sampler": "cd@1"})
    return folder


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _write_log(path: Path, low: float, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.arange(20, 24_000, 20)
    losses = (low + 0.8 * np.exp(-steps / 2500) + 0.3 / np.sqrt(steps)) * np.exp(random.normal(0, 0.16, len(steps)))
    levels = {f"loss/{level}": 0.5 + index / 4 for index, level in enumerate((0.0039, 0.015, 0.055, 0.21, 0.78, 2.9))}
    lines = [
        {"step": int(s), "kimg": s * 0.064, "loss": x, "grad_norm": 0.3, "seconds": s / 100}
        | {name: x * factor for name, factor in levels.items()}
        for s, x in zip(steps, losses, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _save_grid(path: Path, images: np.ndarray, columns: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, (height, width) = len(images) // columns, images.shape[1:]
    tiled = images.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    Image.fromarray(tiled.clip(0, 255).round().astype(np.uint8)).save(path)


def _config(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 0,
        "device": "auto",
        "out": "runs",
        "data": {"source": "digits", "split": "train", "reference_split": None},
        "teacher": {
            "source": "train",
            "prediction": "v_prediction",
            "train": {"kimg": 1500, "batch_size": 64},
        },
        "student": {"method": {"name": "cd"}, "sigma_min": 0.002, "train": {"kimg": 1500, "betas": [0.9, 0.99]}},
        "eval": {"extractor": "digits-cnn", "images": 1000, "seed_blocks": 3},
    }


def _sampler(name: str, label: str, kind: str, nfe: int, fd: float, sd: float | None, ms: float) -> dict[str, Any]:
    blocks = 1 if sd is None else 3

    def metric(mean: float, relative: float) -> dict[str, Any]:
        spread = None if sd is None else abs(mean) * relative
        return {
            "values": [mean + (spread or 0) * (i - (blocks - 1) / 2) for i in range(blocks)],
            "mean": mean,
            "sd": spread,
        }

    return {
        "format": 1,
        "name": name,
        "label": label,
        "kind": kind,
        "nfe": nfe,
        "network_parameters": 703_489,
        "schedule": [round(999 - i * 999 / min(nfe, 50), 2) for i in range(min(nfe, 50))],
        "quality": {
            "protocol_hash": PROTOCOL_HASH,
            "seeds": list(range(blocks)),
            "metrics": {
                "fd": {**metric(fd, 0), "sd": sd},
                "kid": metric(fd / 2000 - 0.004, 0.07),
                "precision": metric(0.97 - fd / 400, 0.008),
                "recall": metric(0.93 - fd / 300, 0.011),
                "copies": metric(0.004, 0.5),
                "fd_minus_floor": {**metric(fd - 5.2, 0), "sd": sd},
            },
        },
        "quality_left_out": None,
        "timing": {
            "latency_ms": {
                "median": 2.4 * nfe,
                "p90": None if nfe == 1000 else 2.9 * nfe,
                "p99": 3.6 * nfe if nfe < 40 else None,
                "runs": 4 if nfe == 1000 else 100,
                "evaluations_timed": nfe,
            },
            "throughput": {"images_per_second": 1000 / ms, "batch_size": 256, "evaluations_timed": nfe},
            "ms_per_image": ms,
            "pace": None,
            "peak_memory_mb": None,
            "warmup_s": 0.21,
        },
    }


def _benchmark() -> dict[str, Any]:
    full = SAMPLERS[0][6]
    speed: dict[str, Any] = {
        name: {"against_ddpm": full / ms, "against_cheapest_within_10pct": None}
        for name, _, kind, *_, ms in SAMPLERS
        if kind == "student"
    }
    speed["student@4"]["against_cheapest_within_10pct"] = {"name": "teacher@dpmsolver++:20", "ratio": 4.72}
    return {
        "format": 1,
        "protocol": PROTOCOL,
        "metric_name": "FD (digits-cnn)",
        "extractor": PROTOCOL["extractor"],
        "reference": PROTOCOL["reference"],
        "floor": {
            "fd": 5.2,
            "kid": 0.0,
            "n": 1000,
            "m": 1797,
            "how": "disjoint halves of the real data, mean of 10 splits",
        },
        "copies": {
            "threshold": 135.0,
            "real_share": 0.01,
            "how": "pixel distance to the nearest training image",
        },
        "environment": ENVIRONMENT,
        "sampler_order": [sampler[0] for sampler in SAMPLERS],
        "speed": speed,
    }
