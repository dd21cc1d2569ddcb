"""The documents say what is true: commands exist, the version agrees, no path of one machine is named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep

REGISTRIES = ("py" + "pi.org", "pythonhosted" + ".org", "registry.npm" + "js.org", "conda.ana" + "conda.org")
MACHINE_PATH = re.compile(r"(?<![\w./~-])/(?:work|root|home|opt|mnt|Users)/[\w.-]")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/performance.md", "docs/scaling.md")


def commands(document: str, program: str) -> set[str]:
    """The words that follow `program` where a document gives it as a command."""
    return set(re.findall(rf"(?:^|`|; |bin/){program} ([a-z][a-z-]+)", document, re.MULTILINE))


def fewstep_prints(*arguments: str, folder: Path | None = None) -> str:
    """What `fewstep ARGUMENTS` prints, run in `folder`."""
    code = "import sys; from fewstep.pipeline.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def help_text(*command: str) -> str:
    """What `fewstep COMMAND --help` prints."""
    return fewstep_prints(*command, "--help")


def test_fewstep_commands_in_the_readme_are_the_ones_there_are(root: Path) -> None:
    named = commands((root / "README.md").read_text(), "fewstep")
    assert named == set(re.findall(r"^  ([a-z-]+) {2,}\S", help_text(), re.MULTILINE))


def test_runs_in_the_readme_have_valid_configurations(root: Path, tmp_path: Path) -> None:
    lines = re.findall(r"^fewstep (run .+)$", (root / "README.md").read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        arguments, _, target = line.partition(" > ")
        printed = fewstep_prints(*arguments.split(), "--print_config", folder=tmp_path)
        if target:
            (tmp_path / target).write_text(printed)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_in_the_documents_exist(root: Path, name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert commands((root / name).read_text(), "make") <= targets


def test_make_help_lists_every_phony_target(root: Path) -> None:
    done = subprocess.run(["make", "-s"], cwd=root, capture_output=True, text=True, timeout=30)
    phony = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert phony[1].split() == re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE)


def test_readme_options_exist(root: Path) -> None:
    launchers = r"(torchrun|accelerate launch) .* -m fewstep"  # whose options are their own
    text = re.sub(launchers, "", (root / "README.md").read_text())
    options = set(re.findall(r"(?<![\w-])(--[a-z_][a-z_-]*(?:\.[a-z_]+)*)", text))
    commands = ["run"], ["sample"], ["rate"], ["benchmark", "x"], ["export"], ["demo"], ["push"], ["inspect"], ["speed"]
    known = "".join(help_text(*command) for command in commands)
    assert sorted(option for option in options if option not in known) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(root: Path, name: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", (root / name).read_text())
    assert [target for target in targets if not (root / name).parent.joinpath(target).exists()] == []


def test_changelog_starts_with_this_version(root: Path) -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == fewstep.__version__


def test_readme_keeps_the_marks_its_tables_are_written_between(root: Path) -> None:
    readme = (root / "README.md").read_text()
    for mark in ("picture:digits", "results:digits", "picture:fashion-mnist", "results:fashion-mnist"):
        assert readme.count(f"<!-- {mark} -->") == readme.count(f"<!-- /{mark} -->") == 1


def test_no_file_names_a_machine_or_a_registry(root: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: no list of the project's files")
    wrong = []
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if path.is_symlink() or not path.is_file() or b"\0" in path.read_bytes():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if MACHINE_PATH.search(line) or any(registry in line for registry in REGISTRIES):
                wrong.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "found"),
    [("cd /" + "work/main", True), ("'/" + "root/.c'", True), ("a/work/b", False), ("at work/rest", False)],
)
def test_the_path_rule_itself(line: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is found
