"""The README's tables and picture, from results that are kept in eval/results/.

    python -m fewstep.eval.report.readme keep runs/digits        results.json and sample grids -> eval/results/digits/
    python -m fewstep.eval.report.readme write                   eval/results/ -> the marked blocks of README.md

Run it in the repository's root (`make readme` does the second).
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from fewstep.errors import UserError
from fewstep.eval.quality.protocol import slug
from fewstep.eval.report.images import image_side, tiles
from fewstep.eval.report.methods import side_by_side
from fewstep.eval.report.tables import best_teacher, firsts, markdown_text, of_kind, results_table_markdown
from fewstep.files import read_json

RESULTS = Path("eval/results")
PICTURE, PARITY = "samples.png", "parity.json"
_IMAGES, _ENLARGED, _LABEL = 16, 6, 190


def keep(run: Path) -> Path:
    """Copy what the README shows of a finished run into eval/results/NAME/, a home folder in paths as ~.

    Of a comparison of methods the text is written without spaces and line ends, and only the grids that are drawn kept.
    """
    text = (run / "report" / "results.json").read_text(encoding="utf-8")
    results = json.loads(text)
    folder = RESULTS / results["name"]
    (folder / "grids").mkdir(parents=True, exist_ok=True)
    grids = {path.name for path in (run / "eval" / "grids").iterdir()}
    if side_by_side(results):
        text = json.dumps(results, ensure_ascii=False, separators=(",", ":")) + "\n"
        grids &= {f"{slug(sampler['name'])}.png" for sampler in drawn(results)}
    (folder / "results.json").write_text(text.replace(str(Path.home()), "~"), encoding="utf-8")
    (folder / PARITY).unlink(missing_ok=True)
    if (run / "export" / PARITY).is_file():
        shutil.copyfile(run / "export" / PARITY, folder / PARITY)
    for name in sorted(grids):
        shutil.copyfile(run / "eval" / "grids" / name, folder / "grids" / name)
    return folder


def write(readme: Path) -> None:
    """Fill the blocks of a README from eval/results/NAME, and draw the pictures that they show.

    `<!-- results:NAME -->` and `<!-- picture:NAME -->`, of a comparison of methods `<!-- family:NAME -->`.
    """
    text = readme.read_text(encoding="utf-8")
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        results = read_json(folder / "results.json")
        draw(results, folder / "grids").save(folder / PICTURE)
        for name, block in (blocks(results) | export_blocks(folder)).items():
            text = replace_block(text, name, block)
    readme.write_text(text, encoding="utf-8")


def blocks(results: dict[str, Any]) -> dict[str, str]:
    """What a README shows of kept results, in markdown: {name of a block: its text}."""
    name, found = results["name"], side_by_side(results)
    caption = f"{name}: images from the same noise, the teacher's best sampler and the student"
    picture = f"![{caption}{'s' if found else ''}]({RESULTS / name / PICTURE})"
    if found is None:
        text = f"**{results['headline']}**\n\n{results_table_markdown(results)}\n{_where(results)}"
        return {f"results:{name}": text, f"picture:{name}": picture}
    said = "".join(f"- {markdown_text(line)}\n" for line in found.claims)
    notes = "\n\n".join(markdown_text(line) for line in found.notes)
    return {f"family:{name}": f"{said}\n{found.markdown}\n{notes}\n\n{picture}\n\n{_where(results)}"}


def export_blocks(folder: Path) -> dict[str, str]:
    """What a README shows of the exports that are kept in a folder, {} where there are none."""
    if not (folder / PARITY).is_file():
        return {}
    kept = read_json(folder / PARITY, {"files": [{"file": str}], "environment": {}, "extractor": {"metric_name": str}})
    name = kept["extractor"]["metric_name"]
    lines = [
        f"| file | MB | largest error | equal pixels | {name} | stock diffusers' | images/s, batch 1 | batch 64 |",
        f"|:--|{'--:|' * 7}",
    ]
    for each in kept["files"]:
        rates = [
            f"{each['speed']['file'][batch]:,.0f} ({each['speed']['file'][batch] / each['speed']['torch'][batch]:.1f}×)"
            if each["speed"]
            else "–"
            for batch in ("1", "64")
        ]
        values = [f"{each['bytes'] / 1e6:.2f}", f"{each['max_error']:.1e}", f"{each['equal_pixels']:.3%}"]
        values += [f"{each['fd']:.3f}", f"{each['stock_fd']:.3f}", *rates]
        note = f" (not offered: {each['fault']})" if each["fault"] else ""
        lines.append(f"| `{each['file']}`{note} | {' | '.join(values)} |")
    environment = kept["environment"]
    where = f"{environment['processor']}, {environment['threads']} threads. Errors are of values in a range of 2 over "
    where += f"{len(kept['files'][0]['batches'])} batch sizes; the Fréchet distances are of the same noise, "
    where += f"{kept['files'][0]['images']:,} images; × is against torch eager, taking turns."
    return {f"exports:{folder.name}": "\n".join([*lines, "", where])}


def _where(results: dict[str, Any]) -> str:
    """Where and how long it was measured."""
    environment, seconds = results["benchmark"]["environment"], sum(s["seconds"] for s in results["stages"])
    return (
        f"{environment['processor']}, {environment['device']}, {environment['threads']} threads; "
        f"{seconds / 60:.0f} minutes from data to result; protocol `{results['benchmark']['protocol']['hash'][:16]}`."
    )


def replace_block(text: str, name: str, block: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- /name -->` replaced; UserError without them."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise UserError("README.md", start, f"has no such block: add {start} and {end}")
    return f"{before}{start}\n{block}\n{end}{after}"


def drawn(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The samplers of the picture: the teacher's best, the student at each step count; of several at the fewest."""
    best, students = best_teacher(results), of_kind(results, "student")
    fewest = min((sampler["nfe"] for sampler in students), default=0)
    if side_by_side(results):
        students = [sampler for sampler in students if sampler["nfe"] == fewest]
    return [sampler for sampler in firsts(results) if sampler in students or sampler == best]


def draw(results: dict[str, Any], grids: Path) -> Image.Image:
    """Rows of images from the same noise, of the samplers `drawn`."""
    shown = drawn(results)
    files = [(grids / f"{slug(sampler['name'])}.png").read_bytes() for sampler in shown]
    side = image_side(files[0])
    cell = side * _ENLARGED + 2
    picture = Image.new("RGB", (_LABEL + _IMAGES * cell, len(shown) * cell), "white")
    pen = ImageDraw.Draw(picture)
    for line, (sampler, png) in enumerate(zip(shown, files, strict=True)):
        pen.text((6, line * cell + cell // 2), sampler["label"], fill="black", anchor="lm", font_size=15)
        for index, image in enumerate(tiles(png, side).reshape(-1, side, side, 4)[:_IMAGES]):
            enlarged = Image.fromarray(image.repeat(_ENLARGED, 0).repeat(_ENLARGED, 1))
            picture.paste(enlarged, (_LABEL + index * cell, line * cell))
    return picture


def main(argv: Sequence[str]) -> int:
    """`keep RUN` or `write`."""
    if len(argv) == 2 and argv[0] == "keep":
        print(keep(Path(argv[1])))
    elif list(argv) == ["write"]:
        write(Path("README.md"))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
