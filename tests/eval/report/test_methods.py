"""Methods side by side: means over trainings, what is claimed of them, and what a page and a README show."""

import json
from pathlib import Path

from fewstep.eval.report import readme
from fewstep.eval.report.inputs import read_run
from fewstep.eval.report.methods import SideBySide, side_by_side
from fewstep.eval.report.page import write_report
from fewstep.eval.report.tables import headline, rows

KIMG = 1534.72  # of the last record of the logs


def table(results: dict) -> tuple[SideBySide, dict[str, dict[str, str]]]:
    """The section, and its rows by the first cell: {heading: cell}."""
    found = side_by_side(results)
    assert found is not None
    return found, {cells[0]: dict(zip(found.columns, cells, strict=True)) for _, cells in found.rows}


def test_a_method_has_one_row_of_means_over_its_trainings(family_dir):
    _, found = table(read_run(family_dir, []).results)
    assert list(found) == [
        *("cd", "ect", "Teacher’s best: DDIM, 50 steps, 50 evaluations"),
        "Teacher, DDIM, with as many evaluations",
    ]
    cd, ect, best, ddim = found.values()
    assert cd["FD (digits-cnn), 1 step ↓"] == "20.5 ± 0.5"
    assert cd["FD (digits-cnn), 2 steps ↓"] == "16.0 ± 1.0"
    assert (cd["Reads of the teacher"], ect["Reads of the teacher"]) == ("2 evaluations an image", "starting weights")
    costs = [row["Thousand forward evaluations"] for row in (cd, ect, best)]
    assert costs == [f"{6 * KIMG:,.0f}", f"{4 * KIMG:,.0f}", "–"]
    assert cd["Training time"] == "4 min 0 s"  # 239.8 s of the log, not the stage's 90
    assert cd["Others’ CIFAR-10 FID, 1 / 2 steps"] == "3.55 / 2.93 (LPIPS)"
    assert [best[f"FD (digits-cnn), {each} ↓"] for each in ("1 step", "2 steps")] == ["22.6", "22.6"]
    assert [ddim[f"FD (digits-cnn), {each} ↓"] for each in ("1 step", "2 steps")] == ["300", "–"]


def test_one_method_is_called_better_only_by_means_over_trainings(family_dir):
    results = read_run(family_dir, []).results
    one, two = table(results)[0].claims
    assert one.startswith(
        "1 step: cd has the lowest FD (digits-cnn), 20.5 ± 0.5 over 3 trainings. It is better than ect ("
    )
    assert "cannot be told" not in one
    assert two.startswith(
        "2 steps: cd has the lowest FD (digits-cnn), 16.0 ± 1.0 over 3 trainings. It cannot be told from"
    )
    assert "better than" not in two
    results["trainings"] = [each for each in results["trainings"] if each["training"] == 1]
    found, cells = table(results)
    assert found.claims == []
    assert cells["cd"]["FD (digits-cnn), 1 step ↓"] == "20.0"
    assert found.notes[0].startswith("Each was trained once")


def test_what_trajectories_of_the_teacher_cost_is_in_the_cost(family_dir):
    for number in ("", "-2", "-3"):
        path = family_dir / "students" / f"ect{number}" / "manifest.json"
        inputs = {"weights": {"trajectories": {"number": 62_500, "steps": 16}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": inputs}))
    row = table(read_run(family_dir, []).results)[1]["ect"]
    assert row["Thousand forward evaluations"] == f"{4 * KIMG + 1000:,.0f}"
    assert row["Reads of the teacher"] == "trajectories"


def test_the_time_of_a_run_has_that_of_the_trajectories_it_learned_from(family_dir):
    settings = {"number": 10, "steps": 4}
    for stage, more in (("students/ect", {"weights": {"trajectories": settings}}), ("trajectories", {})):
        path = family_dir / stage / "manifest.json"
        path.parent.mkdir(exist_ok=True)
        kept = json.loads((family_dir / "students" / "ect" / "manifest.json").read_text())
        path.write_text(json.dumps(kept | {"seconds": 30.0, "inputs": {"trajectories": settings} | more}))
    stages = {each["stage"]: each["seconds"] for each in read_run(family_dir, []).results["stages"]}
    assert (list(stages)[:2], stages["trajectories"]) == (["teacher", "trajectories"], 30.0)
    path.write_text(path.read_text().replace('"number": 10', '"number": 11'))  # no student that is there read these
    assert "trajectories" not in [each["stage"] for each in read_run(family_dir, []).results["stages"]]


def test_the_table_of_samplers_has_first_trainings_and_the_headline_a_mean(family_dir):
    results = read_run(family_dir, []).results
    assert [row["name"] for row, _ in rows(results) if row["kind"] == "student"] == ["cd@1", "cd@2", "ect@1", "ect@2"]
    assert "at FD (digits-cnn) 20.5 ± 0.5 (cd, 3 trainings) against the teacher’s best 22.6" in headline(results)


def test_the_page_shows_it_and_says_what_was_not_timed(family_dir):
    html = write_report(family_dir, []).read_text()
    assert "<h2>Methods side by side</h2>" in html
    assert all(text in html for text in ("thousand forward evaluations spent", "var(--method-2)", "arXiv:2303.01469"))
    assert "not timed: cd-2, cd-3, ect-2, ect-3." in html
    assert "No teacher sampler is as good" not in html
    markdown = (family_dir / "report" / "results.md").read_text()
    assert table(read_run(family_dir, []).results)[0].markdown in markdown


def test_a_run_of_one_training_has_no_such_section(run_dir):
    assert side_by_side(read_run(run_dir, []).results) is None
    assert "Methods side by side" not in write_report(run_dir, []).read_text()


def test_a_comparison_is_kept_small_and_fills_its_block(family_dir, tmp_path, monkeypatch):
    write_report(family_dir, [])
    monkeypatch.chdir(tmp_path)
    folder = readme.keep(family_dir)
    assert folder == Path("eval/results/family")
    assert {path.stem for path in (folder / "grids").iterdir()} == {"cd_1", "ect_1", "teacher_ddim_50"}
    Path("README.md").write_text("a\n<!-- family:family -->\n<!-- /family:family -->\nb\n")
    readme.write(Path("README.md"))
    text = Path("README.md").read_text()
    assert "| cd |" in text
    assert "- 1 step: cd has the lowest" in text
    assert (folder / readme.PICTURE).is_file()
    assert text.startswith("a\n")
    assert text.endswith("b\n")
