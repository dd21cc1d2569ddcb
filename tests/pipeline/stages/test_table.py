"""`fewstep reference`, `benchmark SUBJECT ...` and `rate`, from the command line."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.pipeline.cli.main import main

pytestmark = pytest.mark.timeout(600)
SMALL = "--eval.images 66 --eval.seed_blocks 2 --eval.kid_subset_size 20 --eval.latency_runs 3"
SMALL = [*SMALL.split(), "--eval.latency_seconds", "0.2", "--eval.throughput_batch_sizes", "[16]"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The file of a digits run's own reference."""
    path = tmp_path_factory.mktemp("reference") / "ref.safetensors"
    assert main(["reference", "digits", "-o", str(path), "--without_choices"]) == 0
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """140 real digits as an .npz, and the same in negative as a folder of PNG files."""
    folder, images = tmp_path_factory.mktemp("stored"), digits()[0][:140]
    np.savez(folder / "real.npz", images.permute(0, 2, 3, 1).numpy())
    (folder / "negative").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(255 - image[0].numpy()).save(folder / "negative" / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory, tiny_run, stored, reference):
    """(arguments, folder) of a finished benchmark of four subjects."""
    out = tmp_path_factory.mktemp("compared") / "table"
    subjects = [
        f"{tiny_run}/teacher@ddim:2",
        f"{tiny_run}/students/student@1",
        f"{stored}/real.npz",
        f"{stored}/negative",
    ]
    arguments = ["benchmark", *subjects, "--eval.reference", str(reference), "-o", str(out), *SMALL]
    assert main([*arguments, "--training", "digits"]) == 0
    return arguments, out


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_foreign_program_is_measured_with_trust_only(program, reference, tmp_path, capsys, monkeypatch):
    foreign, out, started = shutil.copy(program, tmp_path / "x.pt2"), tmp_path / "table", []
    monkeypatch.setattr(
        "fewstep.pipeline.sampling.cold_start.cold_start",
        lambda text, device, *, trust: started.append((text, trust)),
    )
    arguments = ["benchmark", str(foreign), str(program), "--eval.reference", str(reference), "-o", str(out), *SMALL]
    assert main(arguments) == 2
    assert f"{foreign}: opening a .pt2 can run code" in capsys.readouterr().err
    assert main([*arguments, "--trust"]) == 0
    assert started == [(str(foreign), True), (str(program), True)]


def test_models_and_images_stand_in_one_table(compared, reference):
    value = results(compared[1])
    assert value["benchmark"]["metric_name"] == "FD (digits-cnn)"  # the extractor is the reference's
    assert value["benchmark"]["protocol"]["reference"]["count"] == 1438
    teacher, student, real, negative = value["samplers"]
    assert [len(sampler["quality"]["seeds"]) for sampler in value["samplers"]] == [2, 2, 2, 2]
    assert teacher["timing"]["ms_per_image"] > student["timing"]["ms_per_image"] > 0
    assert real["timing"] is None
    assert [each["cold_start"] and each["cold_start"]["load_s"] for each in value["samplers"]] == [
        0.75,
        0.75,
        None,
        None,
    ]
    assert "cold start · first image s</dt><dd>0.125" in (compared[1] / "index.html").read_text()
    fd = [sampler["quality"]["metrics"]["fd"]["mean"] for sampler in (real, negative)]
    assert fd[1] > 10 * fd[0]
    assert real["quality"]["metrics"]["copies"]["mean"] == 1.0
    table = (compared[1] / "results.md").read_text()
    assert "digits/teacher, DDIM, 2 steps" in table
    assert "/negative |" in table


def test_the_run_s_own_numbers_are_the_same(compared, tiny_run):
    of_run = json.loads((tiny_run / "eval" / "samplers" / "student_1.json").read_text())["quality"]["metrics"]
    of_table = results(compared[1])["samplers"][1]["quality"]["metrics"]
    for metric in ("fd", "kid", "precision", "recall", "copies"):
        assert of_table[metric]["values"] == pytest.approx(of_run[metric]["values"], rel=1e-6)


def test_a_second_call_measures_nothing_again(compared, capsys):
    arguments, out = compared
    before = {path: path.stat().st_mtime_ns for path in (out / "samplers").iterdir()}
    capsys.readouterr()
    assert main([*arguments, "--training", "digits"]) == 0
    assert "Timing" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / "samplers").iterdir()} == before


def test_what_a_killed_write_left_is_swept(compared):
    arguments, out = compared
    left = out / "samplers" / ".student_1.json.abcd1234.tmp"
    left.write_text("half")
    assert main([*arguments, "--training", "digits"]) == 0
    assert not left.exists()


def test_against_itself_nothing_regressed_and_another_reference_is_refused(compared, tmp_path, capsys):
    arguments, out = compared
    assert main([*arguments, "--against", str(out / "results.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no regression beyond 5 %")
    half = tmp_path / "half.npz"
    np.savez(half, **statistics_of(digits()[0][:900]))
    changed = [str(half) if argument.endswith("ref.safetensors") else argument for argument in arguments]
    changed[changed.index("-o") + 1] = str(tmp_path / "other")
    code = main([*changed, "--eval.extractor", "digits-cnn", "--against", str(out / "results.json")])
    assert code == 2
    assert "protocol.reference" in capsys.readouterr().err


def statistics_of(images):
    features = load_extractor("digits-cnn", None, "cpu")(images).numpy()
    return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}


def test_a_run_measures_against_a_reference_file(tiny, tmp_path, reference, tiny_run, capsys):
    arguments = tiny(tmp_path, eval__reference=str(reference), eval__samplers='["student@1"]')
    assert main(["benchmark", *arguments]) == 0
    of = {
        folder: json.loads((folder / "eval" / "samplers" / "student_1.json").read_text())["quality"]
        for folder in (tiny_run, tmp_path / "digits")
    }
    assert of[tmp_path / "digits"]["metrics"] == of[tiny_run]["metrics"]
    assert of[tmp_path / "digits"]["protocol_hash"] == of[tiny_run]["protocol_hash"]


FAULTS: list[tuple[list[str], str]] = [
    (["reference", "digits", "-o", "ref.npz"], "--out: 'ref.npz': must be a .safetensors file"),
    (["reference", "digits", "-o", "{ref}"], "exists already: give a new file, or remove it"),
    (["reference", "digits", "-o", "no/such/ref.safetensors"], "there is no folder no/such"),
    (["reference", "digitz", "-o", "r.safetensors"], "data.source: 'digitz': must be digits, hub:ID"),
    (
        ["reference", "digits", "-o", "r.safetensors", "--eval.images", "3"],
        "eval.images: 3: has no effect on a reference",
    ),
    (
        ["reference", "digits", "-o", "r.safetensors", "--eval.weights", "i"],
        "eval.weights: 'i': has no effect with eval.extractor = digits-cnn: leave it out",
    ),
    (
        ["reference", "digits", "-o", "r.safetensors", "--eval.extractor", "dinov2"],
        "eval.weights: DINOv2's weights dinov2_vitl14_pretrain.pth are not in",
    ),
    (["reference", "digits"], "fewstep reference: the following arguments are required: -o/--out"),
    (["benchmark", "nowhere", "--eval.reference", "{ref}"], "nowhere: no such folder or file"),
    (["benchmark", "nowhere"], "eval.reference: is required: fewstep reference SOURCE -o FILE makes one"),
    (["benchmark", "{real}", "--eval.reference", "none.npz"], "eval.reference: 'none.npz': no such file"),
    (["benchmark", "{real}", "{real}", "--eval.reference", "{ref}"], "stands there twice"),
    (["benchmark", "{real}", "--eval.reference", "{ref}"], "eval.images: 5000: {real} holds only 140 images"),
    (["benchmark", "{real}", "--eval.reference", "{ref}", "--seed", "1"], "seed: 1: has no effect on a benchmark"),
    (
        ["benchmark", "{real}", "--eval.reference", "{ref}", "--eval.extractor", "inception"],
        "eval.weights",
    ),
]


@pytest.mark.parametrize(("arguments", "says"), FAULTS)
def test_a_wrong_call_is_one_line(arguments, says, reference, stored, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    real = f"{stored}/real.npz"
    assert main([part.replace("{ref}", str(reference)).replace("{real}", real) for part in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says.replace("{real}", real) in err


def offline(*_, **__):
    raise OSError("no network")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of 160 noisy pictures of 20x20, 80 of them brighter, and a folder of the others alone."""
    folder, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for index in range(160):
        (folder / ("dark" if index < 80 else "all")).mkdir(exist_ok=True)
        image = generator.integers(0, 200 if index < 80 else 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / ("dark" if index < 80 else "all") / f"{index:03d}.png")
    return folder


def test_without_a_network_a_reference_and_a_benchmark_of_any_images_need_no_download(
    colours, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    file, out = tmp_path / "ref.safetensors", tmp_path / "table"
    assert main(["reference", f"imagefolder:{colours / 'all'}", "-o", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"eval.extractor: small-cnn, because Inception's weights are not in {tmp_path / 'torch'}" in said
    assert said.index("eval.extractor") < said.index("reference: features")
    subjects = [str(colours / "dark")]
    assert main(["benchmark", *subjects, "--eval.reference", str(file), "-o", str(out), *SMALL]) == 0
    value = results(out)["benchmark"]
    assert (value["extractor"]["name"], value["metric_name"]) == ("small-cnn", "FD (small-cnn)")
    assert "FD (small-cnn) is not FID" in (out / "index.html").read_text()


def test_an_extractor_that_is_named_is_used_whether_there_is_a_network_or_not(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    source = f"imagefolder:{colours / 'all'}"
    out = ["-o", str(tmp_path / "ref.safetensors")]
    assert main(["reference", source, *out, "--eval.extractor", "small-cnn"]) == 0
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    out = ["-o", str(tmp_path / "other.safetensors")]
    assert main(["reference", source, *out, "--eval.extractor", "inception"]) == 2
    assert capsys.readouterr().err.endswith("or measure without a download: --eval.extractor small-cnn\n")


def test_subjects_of_two_shapes_are_refused(tiny_run, reference, tmp_path, capsys):
    np.savez(tmp_path / "colour.npz", torch.zeros(50, 8, 8, 3, dtype=torch.uint8).numpy())
    subjects = [f"{tiny_run}/students/student@1", f"{tmp_path}/colour.npz"]
    assert main(["benchmark", *subjects, "--eval.reference", str(reference), "-o", str(tmp_path / "out"), *SMALL]) == 2
    assert "makes images (3, 8, 8) (C, H, W)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_s_rating_page_shows_its_models(tiny_run, tmp_path, capsys):
    out = tmp_path / "rate.html"
    assert main(["rate", str(tiny_run), "--pairs", "3", "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert out.read_text().count('"rival": "teacher"') == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rate"], "fewstep rate: give either a run, to write the page, or --collect FILE"),
        (["rate", "{run}", "--collect", "x.json"], "give either a run"),
        (["rate", "--collect", "x.json"], "x.json: no such file"),
        (["rate", "nowhere"], "nowhere: no such run folder"),
        (["rate", "{run}", "--pairs", "1800"], "--pairs: '1800': "),
        (["rate", "{run}", "-o", "no/such/page.html"], "there is no folder no/such"),
    ],
)
def test_a_wrong_call_of_rate_is_one_line(arguments, says, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_run) if argument == "{run}" else argument for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
