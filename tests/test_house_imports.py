"""The import arrows, the banned calls, and what an import costs: read from the source, not trusted."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("teachers", "students", "eval", "pipeline")
FOR_ALL = {"fewstep", "fewstep.errors", "fewstep.files", "fewstep.progress", "fewstep.settings"}
MAY_IMPORT = {
    "teachers": {"teachers"},
    "students": {"students", "teachers"},
    "eval": {"eval"},
    "pipeline": set(PACKAGES),
}
MAX_LINES = 350
# Published weights and torch-fidelity's cache of statistics are read from a .pth with weights_only, in one place;
# torch-fidelity takes Inception's as a .pth only, so they are rewritten and handed on.
# A .pt2 is opened, and can run code, once a manifest of fewstep or the user's --trust vouches for it (SECURITY.md).
EXCEPTIONS = {
    "eval/features/inception.py": {"torch.save"},
    "eval/array_file.py": {"torch.load(weights_only=True)"},
    "pipeline/sampling/pt2.py": {"torch.export.load"},
}
LOOSE = ("strict=False", "allow_pickle=True")
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
DISTRIBUTION = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # where the two names differ
HEAVY = ("torch", "diffusers", "datasets", "sklearn", "matplotlib", "transformers", "torch_fidelity")


def sources(root: Path) -> dict[Path, ast.Module]:
    """Every source file of the package (tests left out) with its syntax tree."""
    files = [path for folder in (*PACKAGES, "src") for path in sorted((root / folder).rglob("*.py"))]
    assert len(files) > len(PACKAGES)
    return {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in files}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import anywhere in a module; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "fewstep":
                yield from ((node.lineno, f"fewstep.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def allowed(name: str, package: str) -> bool:
    """Whether a module of `package` may import `name`."""
    if name.startswith(".") or name.split(".")[0] in PACKAGES:
        return False  # relative, or a folder by its bare name
    parts = name.split(".")
    if parts[0] != "fewstep" or name in FOR_ALL or name == "fewstep.__version__":
        return True
    return parts[1] in MAY_IMPORT[package]


@pytest.mark.parametrize("package", PACKAGES)
def test_import_arrows_point_one_way(root: Path, package: str) -> None:
    wrong = [
        f"{path.relative_to(root)}:{line}: {name}"
        for path, tree in sources(root).items()
        if path.is_relative_to(root / package)
        for line, name in imports(tree)
        if not allowed(name, package)
    ]
    assert not wrong, f"{package} may import {sorted(MAY_IMPORT[package])} only:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", ["errors", "files", "progress"])
def test_what_everybody_imports_imports_nothing_else_of_ours(root: Path, name: str) -> None:
    tree = sources(root)[root / f"src/fewstep/{name}.py"]
    assert {found for _, found in imports(tree) if found.startswith("fewstep")} <= {"fewstep.errors"}


@pytest.mark.parametrize(
    ("name", "package", "verdict"),
    [
        ("fewstep.students.load", "teachers", False),
        ("fewstep.pipeline", "eval", False),
        ("fewstep.load_student", "eval", False),
        ("teachers.load", "students", False),
        (".load", "students", False),
        ("fewstep.teachers.load", "students", True),
        ("fewstep.eval.quality.protocol", "pipeline", True),
        ("fewstep.errors", "teachers", True),
        ("torch.nn", "teachers", True),
    ],
)
def test_the_rule_itself(name: str, package: str, verdict: bool) -> None:
    assert allowed(name, package) is verdict


def banned_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of each use that unpickles, loads weights loosely, or hides a non-finite number."""
    for line, name in imports(tree):
        if name.split(".")[0] in UNPICKLERS:
            yield line, f"import {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("nan_to_num", "nan_to_num_"):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), [ast.unparse(keyword) for keyword in node.keywords]
            if called in ("torch.load", "torch.save", "torch.export.load"):
                safe = "weights_only=True" in keywords
                yield node.lineno, f"{called}(weights_only=True)" if safe else called
            if called != "zip":
                yield from ((node.lineno, word) for word in keywords if word in LOOSE)


def test_no_pickle_no_loose_weights_no_hidden_nan(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)}:{line}: {what}"
        for path, tree in sources(root).items()
        for line, what in banned_uses(tree)
        if what not in EXCEPTIONS.get(path.relative_to(root).as_posix(), ())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "torch.load('x')",
        "torch.load('x', weights_only=True)",
        "torch.export.load('x')",
        "net.load_state_dict(weights, strict=False)",
        "x = grad.nan_to_num(0.0)",
        "numpy.load('x', allow_pickle=True)",
    ],
)
def test_each_banned_use_is_seen(code: str) -> None:
    ((line, what),) = banned_uses(ast.parse(code))
    assert line == 1
    assert what not in EXCEPTIONS["eval/array_file.py"] or "weights_only" in what or "import" in what


def test_files_stay_short(root: Path) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root)}
    long = [f"{path.relative_to(root)}: {n}" for path, n in lengths.items() if n >= MAX_LINES]
    assert not long, f"{MAX_LINES} lines or more, make two files:\n" + "\n".join(long)


def test_every_library_imported_is_a_declared_dependency(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["tensorboard"], *extras["export"], *extras["dinov2"]]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in required}
    imported = {name.split(".")[0] for tree in sources(root).values() for _, name in imports(tree)}
    libraries = imported - {"fewstep", *sys.stdlib_module_names}
    undeclared = {DISTRIBUTION.get(name, name).replace("-", "_") for name in libraries} - declared
    assert not undeclared


@pytest.mark.parametrize("module", ["fewstep", "fewstep.errors", "fewstep.files", "fewstep.pipeline.cli.main"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_type_checker_links_reach_every_package_and_file(root: Path) -> None:
    typing = root / ".typing" / "fewstep"
    linked = {path.name for path in typing.iterdir()}
    files = {path.name for path in (root / "src/fewstep").iterdir() if path.is_file()}
    assert linked == files | {*PACKAGES}
    for package in PACKAGES:
        assert (typing / package).resolve() == root / package
    for name in files:
        assert (typing / name).resolve() == root / "src/fewstep" / name
