"""Reserved seed blocks: no result can use one, and one table holds them all."""

import re
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.eval.seeds import BLOCKS, RESERVED, RESULT_BLOCKS
from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.reading import config_from_layers, file_layers

FOLDERS = ("teachers", "students", "eval", "pipeline", "src", "docs")
TABLE = "eval/seeds.py"
PAGE = {"pipeline/export/page/index.html"}  # its seeds are a visitor's, who may use any block


def with_seed_blocks(number):
    return config_from_layers([*file_layers("digits"), (None, {"eval.seed_blocks": number})])


def test_the_largest_number_of_seed_blocks_ends_before_the_reserved_ones():
    used = range(with_seed_blocks(RESULT_BLOCKS).eval.seed_blocks)
    assert not set(used) & set(RESERVED)
    assert {*used, *RESERVED} == set(range(BLOCKS))
    with pytest.raises(UserError, match=rf"^eval\.seed_blocks: {RESULT_BLOCKS + 1}: .*at most {RESULT_BLOCKS}$"):
        with_seed_blocks(RESULT_BLOCKS + 1)


@pytest.mark.parametrize("seed", RESERVED)
def test_people_never_judge_images_of_a_reserved_block(seed, tmp_path, capsys):
    assert main(["rate", str(tmp_path), "--seed", str(seed)]) == 2
    assert f"at most {RESULT_BLOCKS - 1}" in capsys.readouterr().err


def test_no_other_file_writes_a_reserved_block(root: Path):
    kinds = {".py", ".yaml", ".toml", ".js", ".html", ".cpp", ".md"}
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in kinds]
    files += root.glob("*.md")
    names = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files}
    assert TABLE in names
    number = re.compile(rf"\b({'|'.join(map(str, RESERVED))})\b")
    assert {name for name, text in names.items() if number.search(text)} <= PAGE, f"take it from {TABLE}"


def test_the_page_offers_all_blocks(root: Path):
    page = root / "pipeline/export/page"
    assert f'max="{BLOCKS - 1}"' in (page / "index.html").read_text(encoding="utf-8")
    assert f"const SEEDS = {BLOCKS};" in (page / "app.js").read_text(encoding="utf-8")
