"""What the fault tests share: a server of cheap processes, a finished run, and the table of what was survived."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from faults.forks import Forks
from faults.killing import Run, finished_run

TABLE = pytest.StashKey[list[tuple[str, int, int, str]]]()


@pytest.fixture(scope="session")
def forks(tmp_path_factory) -> Iterator[Forks]:
    """Runs functions of `faults.tasks` in processes of their own."""
    server = Forks(tmp_path_factory.mktemp("printed"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def timed_run(forks, tiny, tmp_path_factory) -> tuple[Run, dict[str, float]]:
    """A finished run with a checkpoint every few steps, to be read, and each stage's seconds of the processor."""
    run = Run(forks, tmp_path_factory.mktemp("whole"), tiny)
    return run, finished_run(run)


@pytest.fixture(scope="session")
def whole_run(timed_run) -> Run:
    """The finished run; a test that changes something works on a copy."""
    return timed_run[0]


@pytest.fixture
def survived(request):
    """survived(fault, injected, survived, lost, unit): a line of the table that `make soak` prints at its end."""
    lines = request.config.stash.setdefault(TABLE, [])

    def note(fault: str, injected: int, survived: int, lost: Sequence[float] = (), unit: str = "") -> None:
        text = f"{sum(lost) / len(lost):.1f} / {max(lost):g} {unit}" if lost else "none"
        lines.append((fault, injected, survived, text))

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of a soak."""
    lines = config.stash.get(TABLE, [])
    if not lines or "soak" not in config.option.markexpr:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'fault':<44} {'injected':>9} {'survived':>9}  lost work (mean / max)")
    for fault, injected, survived, lost in lines:
        terminalreporter.write_line(f"{fault:<44} {injected:>9} {survived:>9}  {lost}")
