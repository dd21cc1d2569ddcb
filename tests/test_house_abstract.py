"""A class that forgets a method of its base fails when it is made, and the error names the method."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fewstep.students.consistency import ConsistencyModel
from fewstep.students.interfaces import Student
from fewstep.students.methods.base import DistillationMethod
from fewstep.teachers.interfaces import Objective

STUDENT = ("most_steps", "plan", "fixed_steps", "stock_call", "pipeline", "stock_calls")
FOLDERS = ("teachers", "students", "eval", "pipeline", "src")


@pytest.mark.parametrize("name", STUDENT)
def test_a_kind_of_student_that_forgets_a_method_cannot_be_made(name: str, tiny_unet: Callable[..., Any]) -> None:
    kind: Any = type("Forgetful", (ConsistencyModel,), {name: vars(Student)[name]})
    with pytest.raises(TypeError, match=rf"abstract class Forgetful .*\b{name}\b"):
        kind(tiny_unet())


@pytest.mark.parametrize(("base", "name"), [(Objective, "forward"), (DistillationMethod, "build")])
def test_an_objective_and_a_method_cannot_forget_either(base: type, name: str) -> None:
    with pytest.raises(TypeError, match=rf"abstract class Forgetful .*\b{name}\b"):
        type("Forgetful", (base,), {"__module__": __name__})()


def classes(root: Path) -> Iterator[tuple[str, ast.ClassDef]]:
    """(dotted module, class) of each class at the top of a source file."""
    for path in (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))):
        module = ".".join(
            path.relative_to(root / "src" if path.is_relative_to(root / "src") else root).with_suffix("").parts
        )
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                yield module if module.startswith("fewstep") else f"fewstep.{module}", node


def methods(node: ast.ClassDef) -> Iterator[tuple[ast.FunctionDef, set[str]]]:
    """Each method and its decorators."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef):
            yield each, {ast.unparse(decorator) for decorator in each.decorator_list}


def test_a_class_with_abstract_methods_is_abstract(root: Path) -> None:
    having = [
        (module, node.name) for module, node in classes(root) if any("abstractmethod" in d for _, d in methods(node))
    ]
    assert len(having) >= 3
    loose = [name for module, name in having if not inspect.isabstract(getattr(importlib.import_module(module), name))]
    assert not loose, "nothing stops one without its methods: derive from ABC"


def test_a_method_that_does_nothing_is_declared_abstract(root: Path) -> None:
    """One with a result, whose body is a docstring, `...` or a raise; protocols are for the type checker."""
    loose = [
        f"{module}.{node.name}.{method.name}"
        for module, node in classes(root)
        if "Protocol" not in map(ast.unparse, node.bases)
        for method, decorators in methods(node)
        if method.returns is not None and ast.unparse(method.returns) not in ("None", "NoReturn")
        if "abstractmethod" not in decorators
        if all(isinstance(line, ast.Pass | ast.Raise) or is_constant(line) for line in method.body)
    ]
    assert not loose


def is_constant(line: ast.stmt) -> bool:
    """Whether a line of code is a docstring or `...`."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
