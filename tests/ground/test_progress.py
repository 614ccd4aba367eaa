from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest

from neox_lab import progress
from neox_lab.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(Progress, "_clock", staticmethod(made))
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_says_how_much_how_fast_and_how_long(clock: Clock) -> None:
    bar = Progress(total=400, unit="step", done=100)
    clock.now += 10
    bar.update(50, "loss 2.310")
    assert bar.line() == "▕█████████               ▏ 150/400 steps · 5/s · 50 s left · loss 2.310"


def test_without_a_total_there_is_no_bar(clock: Clock) -> None:
    bar = Progress(unit="token")
    clock.now += 8
    bar.update()
    assert bar.line() == "1 token · 8 s each"


def test_a_terminal_gets_one_line_that_is_gone_at_the_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=3) as bar:
        bar.update()
        assert terminal.getvalue() == ""  # short work shows nothing
        clock.now += 1
        bar.update()
        clock.now += 0.1
        bar.update()  # too soon after the last
    shown = terminal.getvalue()
    assert shown.count("\r▕") == 1
    assert "2/3 steps" in shown
    assert "\n" not in shown
    assert shown.split("\r")[-2].strip() == ""


def test_a_file_and_silence_get_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for made, silent in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", made)
        with Progress(total=3, silent=silent) as bar:
            clock.now += 5
            bar.update(3)
        assert made.getvalue() == ""


def test_a_notebook_gets_one_output_that_is_empty_at_the_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    display = pytest.importorskip("IPython.display")
    seen: list[Any] = []

    class Handle:
        def update(self, shown: Any, raw: bool) -> None:
            seen.append(shown)

    def shows(shown: Any, raw: bool, display_id: bool) -> Handle:
        seen.append(shown)
        return Handle()

    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", shows)

    def work() -> None:
        with Progress(total=2) as bar:
            clock.now += 1
            bar.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(seen) == 2
    assert "1/2 steps" in seen[0]["text/plain"]
    assert seen[1] == {"text/plain": ""}


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.6, "8 s"), (185, "3:05 min"), (7200, "2:00 h"), (0, "0 s")]
)
def test_durations_are_read_at_a_glance(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_nothing_is_imported_for_it() -> None:
    code = "import sys, neox_lab.progress; assert 'IPython' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_several_of_what_is_counted() -> None:
    assert Progress(total=2, unit="patch").line().split(" · ")[0].endswith(" 0/2 patches")
    assert Progress(unit="path", done=3).line().startswith("3 paths")


def test_work_within_other_work_is_told_of_in_its_line(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=3, unit="token") as outer:
        outer.update()
        for _ in range(2):
            with Progress(total=4, unit="layer") as inner:
                clock.now += 1
                inner.update()
                assert outer.line().endswith(" left · 1/4 layers, 3 s left")
            assert "layer" not in outer.line()
        assert terminal.getvalue().count("▕") == terminal.getvalue().count("\r") == 2
        outer.update()
    with Progress(total=4, unit="layer") as alone:
        clock.now += 1
        alone.update()
    assert "\r▕██████                  ▏ 1/4 layers · 1/s · 3 s left" in terminal.getvalue()


def test_within_silent_work_all_is_silent(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for outer, inner in ((True, False), (False, True)):
        with (
            Progress(total=3, silent=outer, delay=100),
            Progress(total=3) as middle,
            Progress(total=3, silent=inner) as last,
        ):
            clock.now += 5
            last.update()
            if outer:
                middle.update()
    assert terminal.getvalue() == ""
