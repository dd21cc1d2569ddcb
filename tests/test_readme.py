"""The README's Python examples run, in a folder that holds a finished run."""

import re

import pytest

BLOCK = re.compile(r"<!-- run by tests/test_readme\.py -->\n```python\n(.*?)```", re.DOTALL)


def test_every_python_example_of_fewstep_is_run_here(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    ours = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import fewstep" in block]
    assert ours
    assert BLOCK.findall(text) == ours


@pytest.mark.timeout(600)
def test_the_python_examples_run(root, tiny_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    for block in BLOCK.findall((root / "README.md").read_text(encoding="utf-8")):
        names = {}
        exec(compile(block, "README.md", "exec"), names)
        assert tuple(names["images"].shape) == (16, 1, 8, 8)
        assert str(names["images"].dtype) == "torch.uint8"
        assert names["teacher"].space.shape == (1, 8, 8)
