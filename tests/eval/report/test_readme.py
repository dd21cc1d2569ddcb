"""The README's tables are the kept results, not typed."""

from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.eval.report.readme import blocks, export_blocks, replace_block
from fewstep.files import read_json


def test_every_kept_result_stands_in_the_readme_as_it_is(root: Path) -> None:
    kept = sorted((root / "eval" / "results").glob("*/results.json"))
    assert kept
    readme = (root / "README.md").read_text(encoding="utf-8")
    for path in kept:
        for name, block in (blocks(read_json(path)) | export_blocks(path.parent)).items():
            there = f"<!-- {name} -->\n{block}\n<!-- /{name} -->" in readme
            assert there, f"run `make readme`: {path} is newer than the README"


def test_a_block_is_replaced_and_the_rest_stays() -> None:
    text = "a\n<!-- t -->\nold\n<!-- /t -->\nb\n"
    assert replace_block(text, "t", "new") == "a\n<!-- t -->\nnew\n<!-- /t -->\nb\n"
    assert replace_block(replace_block(text, "t", "x"), "t", "new") == replace_block(text, "t", "new")


def test_a_missing_block_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match="results:digits"):
        replace_block("no markers", "results:digits", "new")
