"""Tests that need real data ask for each set by name, and skip if that one is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest


def test_a_missing_set_skips_and_says_which(
    real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    (tmp_path / "inception").mkdir()
    assert real_data("inception") == tmp_path / "inception"
    for name in ("cifar10", "inception/weights.pth"):
        with pytest.raises(pytest.skip.Exception, match=rf"^real data: no {name} in {tmp_path} \(set FEWSTEP_DATA\)$"):
            real_data(name)


def test_a_missing_folder_skips_too(
    real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "none"))
    with pytest.raises(pytest.skip.Exception, match=r"no cifar10 in .*none \(set"):
        real_data("cifar10")


@pytest.mark.usefixtures("real_data")
def test_who_asks_for_real_data_is_marked(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("data") is not None


def test_no_test_finds_the_folder_by_itself(root: Path) -> None:
    knowing = {root / "tests/conftest.py", Path(__file__).resolve()}
    texts = {path: path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py") if path not in knowing}
    finding = [path.name for path, text in texts.items() if "FEWSTEP_DATA" in text or "fewstep-data" in text]
    assert not finding, "take the fixture real_data, which asks for one set"
