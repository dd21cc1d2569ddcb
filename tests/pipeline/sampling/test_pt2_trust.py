"""Which .pt2 is opened: what a manifest of fewstep vouches for, and at --trust anybody's; a damaged one is one line."""

import json
import shutil
from contextlib import suppress

import pytest
import torch
from exported_programs import pickled

from fewstep.errors import UserError
from fewstep.files import sha256_file
from fewstep.pipeline.sampling.cold_start import cold_start
from fewstep.pipeline.sampling.subjects import open_subject

CPU = torch.device("cpu")


@pytest.fixture
def export(program, tmp_path):
    """A copy of the export's folder: a .pt2 and its manifest."""
    return shutil.copytree(program.parent, tmp_path / "export")


def refusal(path, *, trust=False):
    """The line that refuses a file."""
    with pytest.raises(UserError) as error:
        open_subject(str(path), CPU, trust=trust)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_foreign_file_is_refused_and_nothing_of_it_runs(program, tmp_path):
    planted = tmp_path / "planted"
    bad = pickled(program, tmp_path / "x.pt2", planted)
    assert f"{bad}: opening a .pt2 can run code, and no manifest.json of fewstep" in (line := refusal(bad))
    assert line.endswith("--trust opens files of people you trust")
    assert cold_start(str(bad), "cpu") is None
    assert not planted.exists()
    with suppress(UserError):
        open_subject(str(bad), CPU, trust=True)
    assert planted.exists()  # so the file was not harmless


@pytest.mark.parametrize("manifest", [None, "{", '{"name": "an extension"}', '{"inputs": {}, "outputs": {}}', "seal"])
def test_a_manifest_that_does_not_name_the_file_vouches_for_nothing(export, manifest):
    file = export / "manifest.json"
    if manifest is None:
        file.unlink()
    elif manifest == "seal":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"stage": "other"}))
    else:
        file.write_text(manifest)
    assert "no manifest.json of fewstep beside it vouches" in refusal(export / "student.pt2")


def test_a_foreign_file_is_opened_at_the_user_s_word(program, tmp_path):
    path = shutil.copy(program, tmp_path / "x.pt2")
    assert open_subject(str(path), CPU, trust=True)[1]() == sha256_file(program)
    assert cold_start(str(path), "cpu", trust=True)


@pytest.mark.parametrize("trust", [False, True])
def test_a_changed_byte_is_refused_and_nothing_of_the_file_runs(program, export, tmp_path, trust):
    planted = tmp_path / "planted"
    pickled(program, export / "student.pt2", planted)
    assert "has changed since it was exported (its sha256 is not manifest.json's)" in refusal(
        export / "student.pt2", trust=trust
    )
    assert not planted.exists()
    whole = bytearray(program.read_bytes())
    whole[len(whole) // 2] ^= 1
    (export / "student.pt2").write_bytes(whole)
    assert "has changed since" in refusal(export / "student.pt2", trust=trust)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole: b"", "not a ZIP archive"),
        (lambda whole: whole[: len(whole) // 2], "failed finding central directory"),
        (lambda whole: whole.replace(b'"graph_module"', b'"graph_nodule"', 1), "'graph_module'"),
        (lambda whole: whole.replace(b"aten.conv2d", b"aten.conv9d"), "aten.conv9d"),
    ],
)
def test_a_damaged_file_is_one_line_at_the_user_s_word(program, tmp_path, damage, says, capfd):
    path = tmp_path / "x.pt2"
    path.write_bytes(damage(program.read_bytes()))
    line = refusal(path, trust=True)
    assert capfd.readouterr() == ("", "")
    assert "x.pt2: cannot be loaded as a torch.export program (" in line
    assert says in line
