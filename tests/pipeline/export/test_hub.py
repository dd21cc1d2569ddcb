"""What goes to the hub: a folder that stock diffusers loads, a card of what was measured, no secret in a line."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from safetensors import safe_open

from fewstep.errors import UserError
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.export.hub import write_hub_folder
from fewstep.pipeline.stages.export import Export
from fewstep.pipeline.stages.manifest import model_hash
from fewstep.pipeline.stages.push import push

STUDENT = "students/student"


class Api(HfApi):
    """An HfApi that remembers, and looks at the folder while it is there."""

    def __init__(self, error=None, private=True):
        super().__init__()
        self.error, self.private, self.calls = error, private, []

    def create_repo(self, repo_id, **options):  # type: ignore[override]
        if self.error:
            raise self.error
        self.calls.append((repo_id, options))

    def repo_info(self, repo_id, **options):  # type: ignore[override]
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):  # type: ignore[override]
        self.files = {path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()}
        self.card = (folder_path / "README.md").read_text()
        return SimpleNamespace(commit_url="https://huggingface.co/someone/digits/commit/1")


@pytest.fixture(scope="session")
def folder(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "student"
    job = Export(tiny_run, tiny_run / STUDENT)
    write_hub_folder(tiny_run, job.student_folder, out, job.facts(job.all_steps()), job.calls(), licence="cc-by-4.0")
    return out


def test_the_card_has_the_measured_metrics_as_the_hub_reads_them(folder, tiny_run):
    card: Any = ModelCard.load(folder / "README.md")
    results = {(each.metric_name): each for each in card.data.eval_results or []}
    measured = json.loads((tiny_run / "eval/samplers/student_1.json").read_text())["quality"]["metrics"]
    assert results["FD (digits-cnn), 1 step"].metric_value == pytest.approx(measured["fd"]["mean"], abs=1e-6)
    assert results["FD (digits-cnn), 1 step"].metric_type == "fid"
    assert {"KID, 2 steps", "Precision, 1 step", "Recall, 2 steps"} <= set(results)
    protocol = json.loads((tiny_run / "eval/benchmark.json").read_text())["protocol"]["hash"]
    assert {each.metric_config for each in results.values()} == {f"fewstep protocol {protocol}"}
    front = yaml.safe_load(card.content.split("---")[1])
    assert front["library_name"] == "diffusers"
    assert front["license"] == "cc-by-4.0"
    assert "base_model" not in front  # its teacher was trained here
    assert "![images of the fewest steps](samples.png)" in card.content
    calls = [line for line in card.content.splitlines() if line.startswith("images = pipeline(")]
    assert [line.rpartition("# ")[2] for line in calls] == ["1 step", "2 steps", "4 steps"]
    assert (folder / "samples.png").is_file()


def test_stock_diffusers_loads_it_and_its_weights_say_where_they_are_from(folder, tiny_run):
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=1, output_type="np").images.shape == (2, 8, 8, 1)
    with safe_open(folder / "unet/diffusion_pytorch_model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["fewstep"])["student_hash"] == model_hash(tiny_run / STUDENT)


def test_the_card_of_a_conditional_student_gives_labels(of_classes):
    folder = of_classes / "diffusers"
    card = (folder / "README.md").read_text()
    assert "It makes images of 10 classes, 0 to 9. Give `class_labels`" in card
    assert "class-conditional" in yaml.safe_load(card.split("---")[1])["tags"]
    lines = [line for line in card.splitlines() if line.startswith(("labels =", "images = pipeline("))]
    assert len(lines) == 4  # the labels, and a call for each of 1, 2 and 4 steps
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    exec("\n".join(lines), names := {"pipeline": pipeline})
    assert len(names["images"]) == 16


def test_results_of_another_student_are_not_on_the_card(run):
    manifest = run / "eval" / "manifest.json"
    value = json.loads(manifest.read_text())
    value["inputs"]["samplers"] = dict.fromkeys(value["inputs"]["samplers"], "0" * 64)
    del value["sha256"]
    manifest.write_text(json.dumps(value))
    api = Api()
    push(run, "someone/digits", api=api)
    assert "model-index" not in api.card
    assert "samples.png" not in api.files


def test_a_push_uploads_what_a_dry_run_lists(with_graphs, capsys):
    assert main(["push", str(with_graphs), "someone/digits", "--dry-run"]) == 0
    listed = {line.strip().partition(":")[0] for line in capsys.readouterr().out.splitlines() if line.endswith("bytes")}
    api = Api()
    push(with_graphs, "someone/digits", private=True, api=api)
    assert api.calls == [("someone/digits", {"private": True, "exist_ok": True})]
    assert api.files == listed
    assert {"README.md", "model_index.json", "student-1step.onnx", "parity.json", "sample.py"} <= api.files
    assert 'from_pretrained("someone/digits")' in api.card
    with pytest.raises(UserError, match="is there already and is public"):
        push(with_graphs, "someone/digits", private=True, api=Api(private=False))
    assert "https://huggingface.co/someone/digits/commit/1" in capsys.readouterr().out


def refusal(status):
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("Client error", response=response)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalTokenNotFoundError("hf_secret"), "no login: run `hf auth login`, or set HF_TOKEN"),
        (refusal(401), "no login, or a token that has ended"),
        (refusal(403), "the token may not write there"),
        (refusal(500), "the hub refused"),
        (ConnectionError("Name or service not known"), "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(run, error, says):
    with pytest.raises(UserError, match=says) as found:
        push(run, "someone/digits", api=Api(error))
    assert "\n" not in str(found.value)
    assert "hf_secret" not in str(found.value)


@pytest.mark.parametrize("name", ["digits", "a/b/c", "some one/digits", "someone/-digits"])
def test_a_name_that_is_none_is_refused_before_anything_is_made(tiny_run, name, capsys):
    assert main(["push", str(tiny_run), name, "--dry-run"]) == 2
    assert "REPO_ID" in capsys.readouterr().err
