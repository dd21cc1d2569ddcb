"""The report as a whole: one file that opens offline, every row in it, faults named, the same bytes again."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.eval.report.inputs import read_run
from fewstep.eval.report.page import results_table_markdown, write_report

COMMANDS = ["git clone https://example.org/fewstep", "make run"]


class Page(HTMLParser):
    """Tags, what they load, and the text of every table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_page_is_one_file_that_loads_nothing(run_dir):
    html = write_report(run_dir, COMMANDS).read_text()
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.loads
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in page.loads)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert sorted(path.name for path in (run_dir / "report").iterdir()) == [
        "index.html",
        "results.json",
        "results.md",
    ]


def test_every_sampler_has_its_row_and_one_seed_block_shows_no_interval(run_dir):
    rows = {row[0]: row for row in Page(write_report(run_dir, COMMANDS).read_text()).rows}
    assert len(rows) == 1 + 8 + 4  # head, samplers; head and stages of training
    assert "Teacher, DPM-Solver++, 20 steps" in rows
    assert rows["Student, 1 step"][1:4] == ["1", "33.4 ± 0.9", "28.2 ± 0.9"]
    assert rows["Teacher, DDPM, 1000 steps"][1:4] == ["1,000", "24.1", "18.9"]
    assert not any("±" in cell for cell in rows["Teacher, DDPM, 1000 steps"])
    assert rows["Teacher, DDPM, 1000 steps"][8] == "2,400"  # four runs: no p90
    assert rows["Student, 1 step"][8] == "2.40 (2.90)"


def test_the_page_says_what_was_measured_and_how_to_make_it_again(run_dir):
    html = write_report(run_dir, COMMANDS).read_text()
    for expected in (
        "One network evaluation instead of 1,000: 813× faster than DDPM, at FD (digits-cnn) 33.4",
        "5f0c" * 16,
        "cd34" * 16,
        "Example Processor 3000",
        "git clone https://example.org/fewstep\nmake run",
        "One seed block only, so no interval: Teacher, DDPM, 1000 steps.",
        "FD (digits-cnn) is not FID",
        "4.72 times those of DPM-Solver++, 20 steps, the cheapest teacher sampler",
    ):
        assert expected in html


def test_hostile_names_stay_text(run_dir):
    change(run_dir / "config.json", name="<script>alert(1)</script>")
    label = "Student, <script>alert(2)</script> | 1 step $x$"
    change(run_dir / "eval" / "samplers" / "student_1.json", label=label)
    page = Page(write_report(run_dir, ["echo '<script>alert(3)</script>'"]).read_text())
    assert "script" not in page.tags
    assert label in {row[0] for row in page.rows if row}
    markdown = (run_dir / "report" / "results.md").read_text()
    assert "Student, &lt;script&gt;alert(2)&lt;/script&gt; \\| 1 step $x$" in markdown


def test_results_json_holds_what_the_files_hold(run_dir):
    write_report(run_dir, COMMANDS)
    results = json.loads((run_dir / "report" / "results.json").read_text())
    assert list(results) == [
        *(
            "format",
            "name",
            "headline",
            "config",
            "config_hash",
            "commands",
            "data",
            "stages",
            "trainings",
            "benchmark",
        ),
        "samplers",
    ]
    assert results["commands"] == COMMANDS
    assert results["benchmark"] == json.loads((run_dir / "eval" / "benchmark.json").read_text())
    assert results["stages"][0] == {"stage": "teacher", "seconds": 201.4}
    assert [sampler["name"] for sampler in results["samplers"]] == results["benchmark"]["sampler_order"]
    assert len(results["samplers"]) == 8
    assert results_table_markdown(results) in (run_dir / "report" / "results.md").read_text()


def test_the_same_files_give_the_same_bytes(run_dir):
    def contents() -> dict[str, bytes]:
        write_report(run_dir, COMMANDS)
        return {path.name: path.read_bytes() for path in (run_dir / "report").iterdir()}

    assert contents() == contents()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", "run"),
        ("teacher/manifest.json", "train-teacher"),
        ("logs/students/student.jsonl", "distill"),
        ("eval/benchmark.json", "benchmark"),
        ("eval/samplers/student_2.json", "benchmark"),
        ("eval/grids/teacher_ddim_50.png", "benchmark"),
        ("eval/neighbours.png", "benchmark"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(run_dir, name, command):
    (run_dir / name).unlink()
    with pytest.raises(UserError, match=re.escape(str(run_dir / name)) + f".*`fewstep {command}`"):
        write_report(run_dir, COMMANDS)
    assert not (run_dir / "report").exists()


def test_a_log_that_is_no_json_is_named(run_dir):
    with open(run_dir / "logs" / "teacher.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3\n')
    with pytest.raises(UserError, match=r"logs/teacher\.jsonl: is not JSON lines"):
        write_report(run_dir, COMMANDS)


def test_results_of_another_protocol_are_refused_by_field(run_dir):
    path = run_dir / "eval" / "samplers" / "student_2.json"
    quality = json.loads(path.read_text())["quality"]
    other = {**quality, "protocol_hash": "beef" * 16}
    change(path, quality=other)
    with pytest.raises(UserError, match=r"student_2\.json: protocol_hash: 'beef"):
        write_report(run_dir, COMMANDS)
    protocol = json.loads((run_dir / "eval" / "benchmark.json").read_text())["protocol"]
    protocol["reference"]["count"] = 900
    change(path, quality={**other, "protocol": protocol})
    with pytest.raises(UserError, match=r"student_2\.json: protocol\.reference\.count: 900: differs from 1797"):
        write_report(run_dir, COMMANDS)


def test_a_failed_report_leaves_the_earlier_one(run_dir):
    index = write_report(run_dir, COMMANDS)
    before = index.read_bytes()
    (run_dir / "eval" / "grids" / "real.png").unlink()
    with pytest.raises(UserError):
        write_report(run_dir, COMMANDS)
    assert index.read_bytes() == before


def test_a_sampler_that_was_only_timed_says_why(run_dir):
    path = run_dir / "eval" / "samplers" / "teacher_ddpm_1000.json"
    change(path, quality=None, quality_left_out="eval.ddpm_seed_blocks is 0")
    (run_dir / "eval" / "grids" / "teacher_ddpm_1000.png").unlink()
    html = write_report(run_dir, COMMANDS).read_text()
    row = next(row for row in Page(html).rows if row and row[0] == "Teacher, DDPM, 1000 steps")
    assert row[2:8] == ["–"] * 6
    assert row[9] == "3.60"
    assert "its quality left out: eval.ddpm_seed_blocks is 0" in html


def test_the_time_before_an_interruption_counts(run_dir):
    path = run_dir / "logs" / "students" / "student.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[500:]:
        record["seconds"] -= records[499]["seconds"]  # a resumed training's clock starts anew
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    stages = {stage["stage"]: stage["seconds"] for stage in read_run(run_dir, []).results["stages"]}
    assert stages == {"teacher": 201.4, "student": pytest.approx(262.9 + 100.0), "eval": 171.0}


def test_a_loaded_teacher_needs_no_training_log(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    change(run_dir / "config.json", teacher={**config["teacher"], "source": "some/teacher"})
    (run_dir / "logs" / "teacher.jsonl").unlink()
    assert write_report(run_dir, COMMANDS).is_file()
