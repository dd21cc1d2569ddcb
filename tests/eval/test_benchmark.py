"""The benchmark: its files, its speed ratios, and that an interrupted one keeps what is finished."""

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence

import pytest
import torch
from PIL import Image

import fewstep.eval.benchmark
from fewstep.errors import UserError
from fewstep.eval.benchmark import BenchmarkSettings, benchmark, remove_others
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.images import StoredImages
from fewstep.eval.quality.protocol import slug
from fewstep.eval.quality.references import Reference, load_reference
from fewstep.eval.speed.environment import environment
from fewstep.eval.speed.ratios import speed_ratios
from fewstep.eval.speed.timing import Clock, Limits

NAMES = ("teacher@ddpm:1000", "teacher@ddim:50", "student@1")
LIMITS = Limits(latency_runs=10, latency_seconds=1.0, batch_sizes=(4, 16), throughput_seconds=1.0)
SETTINGS = BenchmarkSettings(
    images=80,
    seed_blocks=2,
    ddpm_seed_blocks=0,
    batch_size=32,
    kid_subset_size=40,
    limits=LIMITS,
    identities=dict.fromkeys(NAMES, "weights 1"),
)
DIGITS = digits()[0][:300]


class Painter:
    """A sampler that paints a digit chosen by the noise and adds noise; it fails at a given call."""

    shape: tuple[int, int, int] = (1, 8, 8)
    num_classes: int | None = None
    schedule: Sequence[float] = (80.0, 0.5)
    network_parameters = 7
    networks = ()

    def __init__(self, name: str, nfe: int, strength, fail_at=None):
        self.name, self.label, self.kind, self.nfe = name, f"Painter {name}", name.split("@")[0], nfe
        self.strength, self.fail_at, self.calls = strength, fail_at, 0

    def sample(self, noise, labels=None):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        x = noise.draw()
        chosen = (x[:, 0, 0, 0].abs() * 1e4).long() % len(DIGITS)
        return DIGITS[chosen].float() / 127.5 - 1 + self.strength * x


def samplers(fail_at=None):
    return [
        Painter("teacher@ddpm:1000", 1000, 0.02),
        Painter("teacher@ddim:50", 50, 0.05),
        Painter("student@1", 1, 0.3, fail_at),
    ]


def silent(line):
    """Takes a benchmark's lines and does nothing."""


def run(folder, made, settings=SETTINGS, reference=None, training: torch.Tensor | None = DIGITS, say=silent, **more):
    extractor = load_extractor("digits-cnn", None, "cpu")
    return benchmark(
        made,
        reference=reference or load_reference(DIGITS, {"dataset": "digits", "split": "train"}, extractor),
        shown=DIGITS,
        training_images=training,
        **more,
        extractor=extractor,
        settings=settings,
        folder=folder,
        device=torch.device("cpu"),
        say=say,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "references"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "references"))
        value = run(folder, samplers())
    results = {path.stem: json.loads(path.read_text()) for path in (folder / "samplers").iterdir()}
    return folder, value, results


def picture_size(path):
    with Image.open(path) as picture:
        return picture.size


def numbers(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def test_every_file_is_written_and_every_number_is_finite(finished):
    folder, value, results = finished
    assert set(results) == {"teacher_ddpm_1000", "teacher_ddim_50", "student_1"}
    assert value == json.loads((folder / "benchmark.json").read_text())
    assert value["sampler_order"] == ["teacher@ddpm:1000", "teacher@ddim:50", "student@1"]
    assert value["metric_name"] == "FD (digits-cnn)"
    assert all(math.isfinite(x) for x in numbers([value, results]))
    assert not (folder / "grids" / "teacher_ddpm_1000.png").exists()  # timed only
    for name in ("real", "teacher_ddim_50", "student_1"):
        assert picture_size(folder / "grids" / f"{name}.png") == (64, 64)
    assert picture_size(folder / "neighbours.png") == (16 * 8, 2 * 8)


def test_quality_has_mean_and_deviation_over_seed_blocks(finished):
    _, value, results = finished
    quality = results["student_1"]["quality"]
    assert quality["seeds"] == [0, 1]
    assert quality["protocol_hash"] == value["protocol"]["hash"]
    fd = quality["metrics"]["fd"]
    assert fd["mean"] == pytest.approx(sum(fd["values"]) / 2)
    assert fd["sd"] == pytest.approx(abs(fd["values"][0] - fd["values"][1]) / math.sqrt(2))
    assert quality["metrics"]["fd_minus_floor"]["mean"] == pytest.approx(fd["mean"] - value["floor"]["fd"])


def test_noisier_images_are_judged_worse_and_clean_copies_are_flagged(finished):
    _, _, results = finished
    student, teacher = (results[name]["quality"]["metrics"] for name in ("student_1", "teacher_ddim_50"))
    assert student["fd"]["mean"] > 1.5 * teacher["fd"]["mean"]
    assert student["kid"]["mean"] > teacher["kid"]["mean"]
    assert teacher["copies"]["mean"] > 0.9  # training images with little noise
    assert student["copies"]["mean"] < 0.1


def test_ddpm_is_timed_and_its_quality_left_out_with_the_reason(finished):
    result = finished[2]["teacher_ddpm_1000"]
    assert result["quality"] is None
    assert "eval.ddpm_seed_blocks" in result["quality_left_out"]
    assert result["timing"]["throughput"]["runs"] == finished[2]["student_1"]["timing"]["throughput"]["runs"] == 3
    assert finished[2]["student_1"]["quality_left_out"] is None


def test_an_interrupted_benchmark_keeps_finished_blocks_and_ends_equal(finished, tmp_path):
    folder, _, results = finished
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, samplers(fail_at=5))  # three batches of seed 0, the second batch of seed 1
    kept = json.loads((tmp_path / "samplers" / "student_1.json").read_text())
    assert kept["quality"]["seeds"] == [0]
    assert not (tmp_path / "benchmark.json").exists()
    again = samplers()
    run(tmp_path, again)
    timed = again[1].calls
    assert timed < again[2].calls  # the teacher was timed only, the student made seed 1 as well
    for name, result in results.items():
        assert json.loads((tmp_path / "samplers" / f"{name}.json").read_text())["quality"] == result["quality"]
    assert (tmp_path / "neighbours.json").read_bytes() == (folder / "neighbours.json").read_bytes()
    third = samplers()
    run(tmp_path, third)
    assert [sampler.calls for sampler in third] == [0, 0, 0]


def fake_measure(monkeypatch, slower=1.0):
    """Measurements of 1 ms an evaluation times `slower`; returns the names that are timed, call by call."""
    calls = []

    def measure(samplers, device, limits):
        calls.append([sampler.name for sampler in samplers])
        clocks = [Clock(sampler, device) for sampler in samplers]
        for clock in clocks:
            for runs in (clock.single, clock.many):
                runs.evaluations, runs.seconds = clock.sampler.nfe, [0.001 * clock.sampler.nfe * slower]
        return clocks

    monkeypatch.setattr(fewstep.eval.benchmark, "measure", measure)
    return calls


def test_a_repeat_is_judged_and_not_timed(tmp_path):
    value = run(tmp_path, samplers(), dataclasses.replace(SETTINGS, repeats=frozenset(["student@1"])))
    result = json.loads((tmp_path / "samplers" / "student_1.json").read_text())
    assert (len(result["quality"]["seeds"]), result["timing"]) == (2, None)
    assert all(timing for name, timing in timings(tmp_path).items() if name != "student@1")
    assert value["speed"]["student@1"] == {"against_ddpm": None, "against_cheapest_within_10pct": None}


def timings(folder):
    results = [json.loads(path.read_text()) for path in (folder / "samplers").iterdir()]
    return {result["name"]: result["timing"] for result in results}


def test_an_added_sampler_is_timed_with_the_cheapest_one_as_its_anchor(tmp_path, monkeypatch):
    calls = fake_measure(monkeypatch)
    run(tmp_path, samplers()[1:])
    before = timings(tmp_path)
    assert calls == [["teacher@ddim:50", "student@1"]]
    assert all(timing["pace"] is None for timing in before.values())
    calls = fake_measure(monkeypatch, slower=1.25)  # the machine has grown slower since
    value = run(tmp_path, samplers())
    assert calls == [["teacher@ddpm:1000", "student@1"]]
    after = timings(tmp_path)
    ddpm = after.pop("teacher@ddpm:1000")
    assert after == before
    assert ddpm["pace"] == {"anchor": "student@1", "factor": pytest.approx(0.8)}
    assert (ddpm["ms_per_image"], ddpm["latency_ms"]["median"]) == (pytest.approx(1000), pytest.approx(1000))
    assert value["speed"]["student@1"]["against_ddpm"] == pytest.approx(1000)
    run(tmp_path, samplers())
    assert len(calls) == 1


@pytest.mark.parametrize("key", ["device", "processor", "threads", "torch", "batch_sizes"])
def test_times_of_another_environment_are_not_kept(tmp_path, monkeypatch, key):
    fake_measure(monkeypatch)
    run(tmp_path, samplers()[1:])
    settings, calls = SETTINGS, fake_measure(monkeypatch)
    if key == "batch_sizes":
        settings = dataclasses.replace(SETTINGS, limits=dataclasses.replace(LIMITS, batch_sizes=(4,)))
    else:
        elsewhere = environment(torch.device("cpu")) | {key: "another"}
        monkeypatch.setattr(fewstep.eval.benchmark, "environment", lambda device: elsewhere)
    run(tmp_path, samplers(), settings)
    assert calls == [list(NAMES)]
    assert all(timing["pace"] is None for timing in timings(tmp_path).values())


def test_a_sampler_that_left_the_list_leaves_the_folder(tmp_path):
    run(tmp_path, samplers())
    remove_others(tmp_path, samplers()[:2])
    assert {path.name for path in (tmp_path / "samplers").iterdir()} == {
        "teacher_ddpm_1000.json",
        "teacher_ddim_50.json",
    }
    assert not (tmp_path / "grids" / "student_1.png").exists()


def test_results_of_other_weights_or_another_protocol_are_not_kept(tmp_path):
    run(tmp_path, samplers())
    other = dict.fromkeys(NAMES, "weights 2")
    for settings in (
        dataclasses.replace(SETTINGS, identities=other),
        dataclasses.replace(SETTINGS, identities=other, images=90),
    ):
        again = samplers()
        run(tmp_path, again, settings)
        measured = [
            sampler for sampler in again if settings.blocks(sampler)
        ]  # of one that is timed only, nothing is of a protocol
        assert all(sampler.calls > 0 for sampler in measured)


def test_a_kept_result_that_has_changed_is_named_and_measured_again(tmp_path, finished):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    path, said = tmp_path / "samplers" / "student_1.json", []
    text = path.read_text()
    mean = str(json.loads(text)["quality"]["metrics"]["fd"]["mean"])
    assert mean in text
    path.write_text(text.replace(mean, mean[:-1] + ("2" if mean[-1] == "1" else "1")))
    again = samplers()
    run(tmp_path, again, say=said.append)
    assert said[0] == f"WARNING: {path}: is corrupt (its own sha256 differs); measuring it again"
    assert again[2].calls > 0
    assert json.loads(path.read_text())["quality"] == finished[2]["student_1"]["quality"]


def test_a_kid_subset_larger_than_the_reference_is_refused_before_work(tmp_path):
    made, most = samplers(), len(DIGITS)
    with pytest.raises(UserError, match=rf"^eval.kid_subset_size: {most + 1}: .* the {most} real images"):
        run(tmp_path, made, dataclasses.replace(SETTINGS, kid_subset_size=most + 1))
    assert made[0].calls == 0
    assert list(tmp_path.iterdir()) == []


def test_stored_images_are_judged_and_not_timed(tmp_path):
    noisy = DIGITS[:200].int() + torch.randint(-30, 30, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    stored = StoredImages("a folder", "noisy digits", noisy.clamp(0, 255).to(torch.uint8))
    identities = {**SETTINGS.identities, "a folder": "pixels"}
    value = run(tmp_path, [stored, samplers()[2]], dataclasses.replace(SETTINGS, identities=identities))
    assert value["sampler_order"] == ["a folder", "student@1"]
    result = json.loads((tmp_path / "samplers" / "a_folder.json").read_text())
    assert (result["timing"], result["nfe"]) == (None, None)
    assert result["quality"]["seeds"] == [0, 1]  # 200 images fill two blocks of 80
    assert result["quality"]["metrics"]["fd"]["mean"] > 0
    run(tmp_path, [stored], dataclasses.replace(SETTINGS, identities=identities, images=150))
    metrics = json.loads((tmp_path / "samplers" / "a_folder.json").read_text())["quality"]["metrics"]
    assert metrics["fd_infinity"]["mean"] < metrics["fd"]["mean"]  # 150 images are twice the 64 features and more
    with pytest.raises(UserError, match=r"eval\.images: 201: a folder holds only 200 images"):
        run(tmp_path, [stored], dataclasses.replace(SETTINGS, identities=identities, images=201))


def test_statistics_alone_give_the_same_distance_and_no_more(tmp_path):
    whole = load_reference(DIGITS, {"dataset": "digits", "split": "train"}, load_extractor("digits-cnn", None, "cpu"))
    bare = Reference(whole.provenance, None, whole.statistics)
    value = run(tmp_path / "bare", samplers()[2:], reference=bare, training=None)
    run(tmp_path / "whole", samplers()[2:])
    of = {name: json.loads((tmp_path / name / "samplers" / "student_1.json").read_text()) for name in ("bare", "whole")}
    assert (value["floor"], value["copies"]) == (None, None)
    assert list(of["bare"]["quality"]["metrics"]) == ["fd", "full_range"]
    assert of["bare"]["quality"]["metrics"]["fd"] == of["whole"]["quality"]["metrics"]["fd"]


def timed(name, ms, fd, kind="teacher"):
    quality = None if fd is None else {"metrics": {"fd": {"mean": fd}}}
    return {"name": name, "kind": kind, "nfe": round(2 * ms), "quality": quality, "timing": {"ms_per_image": ms}}


def test_speed_is_against_ddpm_and_the_cheapest_solver_within_ten_percent():
    results = [
        timed("runs/a/teacher@ddpm:1000", 500.0, None),
        timed("teacher@ddpm:100", 50.0, None),
        timed("b@ddpm:9000", 4500.0, 1.0, "pipeline"),
        timed("teacher@ddim:50", 25.0, 20.0),
        timed("teacher@ddim:10", 5.0, 33.0),
        timed("teacher@ddim:5", 2.5, 33.1),
        timed("teacher@1", 0.5, 30.0, "student"),
        timed("ect@2", 1.0, 17.0, "student"),
    ]
    speed = speed_ratios(results)
    assert speed["teacher@1"] == {
        "against_ddpm": 1000.0,
        "against_cheapest_within_10pct": {"name": "teacher@ddim:10", "ratio": 10.0},
    }
    assert speed["ect@2"] == {"against_ddpm": 500.0, "against_cheapest_within_10pct": None}
    assert set(speed) == {"teacher@1", "ect@2"}


def test_slugs_are_file_names():
    assert slug("teacher@dpmsolver++:20") == "teacher_dpmsolver++_20"


@pytest.mark.parametrize(("level", "text"), [(0, "one flat grey of 0"), (None, "one picture")])
def test_images_that_are_all_the_same_are_refused(tmp_path, level, text):
    one = DIGITS[:1] if level is None else torch.full((1, 1, 8, 8), level, dtype=torch.uint8)
    stored = StoredImages("a folder", "one image", one.repeat(90, 1, 1, 1))
    with pytest.raises(UserError, match=rf"a folder: all 90 images are the same \({text}\)"):
        run(tmp_path, [stored])
    with pytest.raises(UserError, match="all 90 images are the same"):
        load_reference(stored.block(0, 90).tensor, {}, load_extractor("digits-cnn", None, "cpu"))


def test_a_sampler_that_always_makes_the_same_image_is_refused_by_name(tmp_path):
    class Collapsed(Painter):
        def sample(self, noise, labels=None):
            return torch.zeros(len(noise.generators), 1, 8, 8)

    with pytest.raises(UserError, match=r"student@1: all 80 images are the same \(one flat grey of 128\)"):
        run(tmp_path, [Collapsed("student@1", 1, 0.0)])


def test_near_copies_are_searched_in_features_where_they_are_given(tmp_path):
    extractor = load_extractor("digits-cnn", None, "cpu")
    value = run(tmp_path, samplers()[2:], training_features=extractor(DIGITS))
    assert value["copies"]["in_features"]["threshold"] > 0
    metrics = json.loads((tmp_path / "samplers" / "student_1.json").read_text())["quality"]["metrics"]
    assert 0 <= metrics["copies_in_features"]["mean"] <= 1
    assert "inception_score" not in metrics  # the digits' network gives no logits
