import io
import itertools

import pytest

from service.core import progress
from service.core.progress import LINE_INTERVAL_S, ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_that_is_drawn_again_in_its_line() -> None:
    output = Terminal()
    for _ in ProgressBar(range(3), desc="reading", file=output, mininterval=0, disable=False):
        pass
    assert output.getvalue().count("\r") > 1
    assert "3/3" in output.getvalue()


def test_a_log_gets_whole_lines_seldom_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(step=LINE_INTERVAL_S / 4)  # each look at the clock is that much later
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(seconds)))
    output = io.StringIO()
    with ProgressBar(total=100, desc="reading", file=output, mininterval=0, disable=False) as bar:
        for _ in range(100):
            bar.update()
    lines = output.getvalue().splitlines()
    assert output.getvalue() == "".join(f"{line}\n" for line in lines)
    assert 2 < len(lines) < 50
    assert all(line.startswith("reading: ") for line in lines)
    assert "\r" not in output.getvalue()
    assert "100/100" in lines[-1]


def test_a_log_gets_one_line_of_work_that_is_done_at_once() -> None:
    output = io.StringIO()
    bar = ProgressBar(range(1000), file=output, disable=False)
    for n in bar:
        bar.set_postfix(loss=n)
    assert output.getvalue().count("\n") == 1
    assert "loss=999" in output.getvalue()


def test_bars_inside_bars_and_lines_of_text_do_not_tear_a_log() -> None:
    output = io.StringIO()
    for _ in ProgressBar(range(2), desc="outer", file=output, disable=False):
        for _ in ProgressBar(range(2), desc="inner", file=output, disable=False):
            ProgressBar.write("said", file=output)
    lines = [line.split(" ", 1)[0] for line in output.getvalue().splitlines()]
    assert lines == ["said", "said", "inner:", "said", "said", "inner:", "outer:"]


def test_a_bar_that_is_switched_off_says_nothing() -> None:
    output = io.StringIO()
    assert list(ProgressBar(range(2), file=output, disable=True)) == [0, 1]
    assert output.getvalue() == ""
