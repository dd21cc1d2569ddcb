"""`fewstep push RUN REPO_ID`: a student, its card and its exported graphs to the Hugging Face hub."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from fewstep.errors import UserError, first_line
from fewstep.files import read_json
from fewstep.pipeline.export.hub import write_hub_folder
from fewstep.pipeline.export.names import PARITY
from fewstep.pipeline.stages.export import Export, export_folder
from fewstep.pipeline.stages.manifest import MANIFEST, read_manifest, verify_outputs
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.students.load import student_folder


def push(
    run: Path,
    repo: str,
    *,
    student: str | None = None,
    private: bool = False,
    licence: str | None = None,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> None:
    """Upload into the repository `repo` (OWNER/NAME), which is made where there is none.

    `licence`: its short name on the hub, for the card. `private`: a new repository is, and one that is not is refused.
    The token is the one that huggingface_hub finds (its login, HF_TOKEN); it is neither read nor shown here. Graphs go
    along where RUN/export has them of this student. `dry_run`: only the files and their sizes are listed. `api`: an
    HfApi. UserError: no student; a name that the hub refuses; no login, no network or no permission.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError("REPO_ID", repo, first_line(error)) from None
    if repo.count("/") != 1:
        raise UserError("REPO_ID", repo, "must be OWNER/NAME")
    job = Export(run, student_folder(run, student))
    with raising_signals(), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "student"
        write_hub_folder(
            run, job.student_folder, folder, job.facts(job.all_steps()), job.calls(), repo=repo, licence=licence
        )
        _add_graphs(run, job, folder)
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in found:
            say(f"  {path.relative_to(folder).as_posix()}: {path.stat().st_size:,} bytes")
        total = sum(path.stat().st_size for path in found)
        say(f"{len(found)} files, {total:,} bytes, for {'a private' if private else 'the'} repository {repo}")
        if dry_run:
            say("nothing was uploaded: --dry-run")
            return
        try:
            api = api or HfApi(library_name="fewstep")
            api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.repo_info(repo).private:
                raise UserError("--private", repo, "is there already and is public: make it private, or give another")
            done = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="A student of fewstep",
                delete_patterns=["*.onnx", PARITY, "sample.py"],  # of an earlier student
            )
        except LocalTokenNotFoundError:
            raise UserError("REPO_ID", repo, "no login: run `hf auth login`, or set HF_TOKEN") from None
        except OfflineModeIsEnabled:
            raise UserError("REPO_ID", repo, "HF_HUB_OFFLINE is set: nothing can be uploaded") from None
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            why = {401: "no login, or a token that has ended: run `hf auth login`, or set HF_TOKEN"}
            why |= {403: "the token may not write there: give one that may, or another REPO_ID"}
            raise UserError("REPO_ID", repo, why.get(status or 0, f"the hub refused ({first_line(error)})")) from None
        except Exception as error:
            if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise UserError("REPO_ID", repo, f"the hub cannot be reached ({first_line(error)})") from None
        say(str(getattr(done, "commit_url", done)))


def _add_graphs(run: Path, job: Export, folder: Path) -> None:
    """Put the graphs of RUN/export beside the student, where they were made of it."""
    exported = export_folder(run, job.student_folder)
    if not (exported / MANIFEST).is_file():
        return
    if read_manifest(exported)["inputs"]["student"] != job.facts([1])["student_hash"]:
        say("  the files in export/ are of another student: they stay here")
        return
    verify_outputs(exported)
    for each in read_json(exported / PARITY)["files"]:
        if "onnx" in each["format"] and not each["fault"]:  # a .pt2 may run code
            shutil.copyfile(exported / each["file"], folder / each["file"])
    for name in (PARITY, "sample.py"):
        if (exported / name).is_file():
            shutil.copyfile(exported / name, folder / name)
