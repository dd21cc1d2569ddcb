"""Lines for the person watching, on a terminal or in a file."""

from fewstep import progress
from fewstep.progress import ProgressLine, say


def test_say_prints_text_as_it_is(capsys):
    say("a [bold]word[/bold] and a very long line " + "x" * 200)
    assert capsys.readouterr().out == "a [bold]word[/bold] and a very long line " + "x" * 200 + "\n"


def test_in_a_file_a_line_comes_now_and_then_with_the_time_left(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressLine("teacher", total=100, start=20) as line:
        for done in range(21, 61):
            clock[0] += 1
            line.update(done, f"loss {done}")
    said = capsys.readouterr().out.splitlines()
    assert said == ["  teacher 35%  loss 35  65 s left", "  teacher 50%  loss 50  50 s left"]
