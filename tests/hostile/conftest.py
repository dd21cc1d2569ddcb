"""What the tests of hostile input share: the one line that any of it costs, code that must not run, fuzz targets."""

import importlib.util
import os
import pickle  # noqa: TID251 - to make what must not be read
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from fewstep.errors import LONGEST, UserError


@contextmanager
def refusing(says: str = "") -> Iterator[None]:
    """What is inside must raise a UserError of one printable line in which `says` stands."""
    with pytest.raises(UserError) as caught:
        yield
    check_line(str(caught.value))
    assert says in str(caught.value)


@contextmanager
def bearing() -> Iterator[None]:
    """What is inside may raise a UserError of one printable line, and nothing else."""
    try:
        yield
    except UserError as error:
        check_line(str(error))


def check_line(text: str) -> None:
    """One line that a terminal shows as it is."""
    assert text.isprintable()
    assert 0 < len(text) <= LONGEST


class Shell:
    """Makes a folder when it is unpickled by a reader that allows it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="session")
def refused():
    """`with refused():` around what must be refused in one line."""
    return refusing


@pytest.fixture(scope="session")
def borne():
    """`with borne():` around what may be refused in one line, and must raise nothing else."""
    return bearing


@pytest.fixture
def shell(tmp_path) -> Iterator[Shell]:
    """An object that makes a folder when it is unpickled; the test fails where the folder is there at the end."""
    made = tmp_path / "ran"
    pickle.loads(pickle.dumps(Shell(made)))
    assert made.is_dir()  # the payload works
    made.rmdir()
    yield Shell(made)
    assert not made.exists(), "code from a file was run"


@pytest.fixture(scope="session")
def fuzz() -> ModuleType:
    """The module of fuzz targets beside this file."""
    spec = importlib.util.spec_from_file_location("fewstep_fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
