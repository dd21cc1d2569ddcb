"""The rating page: what it holds, what a person does on it in a browser, and what the answers say."""

import base64
import io
import json
import re
import time

import pytest
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.eval.report.rating import collect, rates_text, rating_page

STUDENT = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous()
TEACHER = STUDENT[:4] + 100
REAL = STUDENT[:4] + 200
LEFT, RIGHT, BACK = "\ue012", "\ue014", "\ue003"  # WebDriver's codes of the keys


@pytest.fixture
def page():
    return rating_page("tiny </script>", STUDENT, {"teacher": TEACHER, "real": REAL}, seed=3)


def data_of(page):
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def grey(png):
    return Image.open(io.BytesIO(base64.b64decode(png))).tobytes()[0]


def test_each_pair_is_the_student_s_image_and_its_rival_s_in_mixed_order(page):
    pairs = data_of(page)["pairs"]
    assert sorted(pair["rival"] for pair in pairs) == ["real"] * 4 + ["teacher"] * 4
    assert {pair["left"] for pair in pairs} == {"student", "teacher", "real"}
    for pair in pairs:
        left, right = (grey(png) for png in pair["images"])
        student, rival = (left, right) if pair["left"] == "student" else (right, left)
        assert rival - student == {"teacher": 100, "real": 196}[pair["rival"]]  # real follow the teacher's four
    assert [pair["rival"] for pair in pairs] != sorted(pair["rival"] for pair in pairs)
    other = rating_page("tiny", STUDENT, {"teacher": TEACHER, "real": REAL}, seed=4)
    assert [pair["left"] for pair in data_of(other)["pairs"]] != [pair["left"] for pair in pairs]


def test_the_page_needs_no_network(page):
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", page)
    assert "fetch(" not in page


def answers(page="p", rater="r", teacher=(3, 10), real=(5, 10)):
    made = []
    for rival, (chosen, shown) in {"teacher": teacher, "real": real}.items():
        made += [{"rival": rival, "chose": "student" if index < chosen else rival} for index in range(shown)]
    return {"format": 1, "name": "tiny", "page": page, "rater": rater, "answers": made}


def files(tmp_path, *values):
    paths = []
    for index, value in enumerate(values):
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_text(value if isinstance(value, str) else json.dumps(value))
    return paths


def test_rates_come_with_wilson_s_interval(tmp_path):
    preferred, fooled = collect(files(tmp_path, answers(), answers(rater="s", teacher=(3, 10))))[0]
    assert (preferred.chosen, preferred.shown, preferred.raters, preferred.share) == (6, 20, 2, 0.3)
    # Wilson 1927: centre (p + z^2/2n) / (1 + z^2/n), computed by hand for 6 of 20
    assert (preferred.low, preferred.high) == pytest.approx((0.1455, 0.5190), abs=1e-3)
    assert fooled.share == 0.5
    assert rates_text([preferred])[0].startswith("the student preferred to its teacher: 30 % (15 to 52, 95 %")


def test_a_file_given_twice_counts_once(tmp_path):
    (preferred, _), remarks = collect(files(tmp_path, answers(), answers()))
    assert (preferred.shown, len(remarks)) == (10, 1)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (answers(page="other", rater="s"), "answers another page than the files before it"),
        ("{", "not valid JSON"),
        ([1], "is not of the form that is needed: it is no JSON object"),
        (answers() | {"answers": [{"rival": "teacher", "chose": "real"}]}, "holds no answers of a fewstep rating page"),
        (
            answers() | {"answers": [{"rival": ["x"], "chose": "real"}]},
            r"answers\[0\]\.rival is list",
        ),
        (answers() | {"format": 2}, "holds no answers of a fewstep rating page"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, value, says):
    with pytest.raises(UserError, match=says) as error:
        collect(files(tmp_path, answers(), value))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="holds no answers yet"):
        collect(files(tmp_path, answers(teacher=(0, 0), real=(0, 0))))


def test_a_person_answers_by_keyboard_and_downloads_what_collect_reads(page, browser, tmp_path):
    (tmp_path / "rate.html").write_text(page)
    browser.call("/url", {"url": f"file://{tmp_path}/rate.html"})
    pairs = data_of(page)["pairs"]
    browser.wait_for("document.hasFocus()")
    browser.press(RIGHT)
    browser.press(BACK)  # a slip, taken back
    for pair in pairs[:-1]:
        browser.press(LEFT if pair["left"] == "student" else RIGHT)
    assert browser.script("return document.getElementById('count').textContent") == "7 of 8"
    browser.script("document.getElementById('left').click()")
    assert browser.script("return document.getElementById('done').hidden") is False
    browser.script("document.getElementById('download').click()")
    deadline = time.monotonic() + 20
    while not (found := list((tmp_path / "downloads").glob("rating-*.json"))):
        assert time.monotonic() < deadline, "nothing was downloaded"
        time.sleep(0.1)
    value = json.loads(found[0].read_text())
    assert [answer["chose"] for answer in value["answers"][:-1]] == ["student"] * 7
    assert value["answers"][-1]["chose"] == pairs[-1]["left"]
    rates, _ = collect(found)
    assert sum(rate.shown for rate in rates) == 8
