"""What a run shows, on a terminal and in a log; the clock is made up."""

import io
from collections.abc import Iterator

import pytest

from llm_study.training.progress import Progress, ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def clock(*times: float) -> Iterator[float]:
    return iter(times).__next__


def test_lines_come_every_ten_seconds_for_evaluations_and_at_the_end() -> None:
    log = io.StringIO()
    bar = ProgressBar(log, clock=clock(0, 1, 9, 12, 13, 14))
    for step in (1, 2, 3, 4, 5):
        bar(Progress(step, 5, loss=1 / step, tokens=100, evaluation=0.75 if step == 4 else None))
    bar.close()
    lines = log.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 1 of 5", "step 3 of 5", "step 4 of 5", "step 5 of 5"]
    assert lines[1] == "step 3 of 5, loss 0.3333, 25 tokens/s, 0:08 left"  # 300 tokens and 3 steps in 12 s
    assert lines[2] == "step 4 of 5, loss 0.2500, evaluation 0.7500, 31 tokens/s, 0:03 left"


def test_speed_is_that_of_the_last_steps() -> None:
    log = io.StringIO()
    bar = ProgressBar(log, clock=clock(*range(0, 1000, 10), *range(1000, 1100)), every=0)
    for step in range(1, 150):
        bar(Progress(step, 10_000, loss=1.0, tokens=50))
    assert log.getvalue().splitlines()[98].endswith("5 tokens/s, 27:30:10 left")
    assert log.getvalue().splitlines()[-1].endswith("50 tokens/s, 2:44:11 left")


def test_a_terminal_gets_one_line_that_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen = Terminal()
    bar = ProgressBar(screen, clock=clock(0, 1, 1.05, 2, 3))
    bar(Progress(1, 4, loss=10.0, tokens=1_000_000))
    bar(Progress(2, 4, loss=1.0, tokens=1))  # too soon after the one before
    bar(Progress(3, 4, loss=1.0, tokens=1, evaluation=0.5))
    bar(Progress(4, 4, loss=1.0, tokens=1))
    bar.close()
    text = screen.getvalue()
    assert "step 2" not in text
    assert text.count("\n") == 2
    assert text.startswith("\r[=====               ] step 1 of 4, loss 10.0000, 1,000,000 tokens/s, 0:03 left\r")
    kept = text.split("\n")[0].split("\r")[-1]
    assert kept.startswith("step 3 of 4, loss 1.0000, evaluation 0.5000")
    assert text.endswith("0:00 left\n")
    widths = [len(part) for part in text.split("\n")[0].split("\r")[1:]]
    assert widths[1] >= widths[0] - 1  # what was drawn before is covered
    assert max(widths) < 80
