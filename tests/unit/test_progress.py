"""Progress of long work: lines in a file, a bar on a terminal, never silence and never both."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable

import pytest

from m4oe_ds.progress import Progress, duration, hours, on_terminal, track

OFTEN = 0.02  # seconds between lines


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("M4OE_PROGRESS", raising=False)


def wait_until(holds: Callable[[], bool]) -> None:
    """Up to ten seconds on a busy machine, usually a few milliseconds."""
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    assert holds()


def test_a_single_long_item_is_not_silent() -> None:
    out = io.StringIO()
    progress = Progress("reading", 10, "files", stream=out, every_s=OFTEN).start()
    wait_until(lambda: out.getvalue().count("\n") >= 3)  # nothing is ever counted: the watching thread speaks
    progress.close()
    lines = out.getvalue().splitlines()
    assert all(re.fullmatch(r"reading: 0 of 10 files \(0%\), \d:\d\d:\d\d so far", line) for line in lines[:-1])
    assert re.fullmatch(r"reading: 0 of 10 files \(0%\) in \d:\d\d:\d\d", lines[-1])


def test_lines_in_a_file_say_how_much_how_fast_and_how_long() -> None:
    out = io.StringIO()
    with Progress("reading", 2000, "files", stream=out, every_s=OFTEN) as progress:
        time.sleep(2 * OFTEN)
        progress.update(500, note="of part 3")
        wait_until(lambda: "of part 3" in out.getvalue())
        progress.update(1500)
    assert "\r" not in out.getvalue()
    said = next(line for line in out.getvalue().splitlines() if "of part 3" in line)
    figures = r"reading: 500 of 2,000 files \(25%\), [\d.]+/s, \d:\d\d:\d\d left, of part 3"
    assert re.fullmatch(figures, said), said
    assert re.fullmatch(r"reading: 2,000 of 2,000 files \(100%\) in 0:00:\d\d", out.getvalue().splitlines()[-1])


def test_work_that_is_done_at_once_says_nothing() -> None:
    out = io.StringIO()
    with Progress("reading", 3, "files", stream=out) as progress:
        progress.update(3)
    assert out.getvalue() == ""


def test_nothing_is_said_after_the_end() -> None:
    out = io.StringIO()
    progress = Progress("reading", 3, "files", stream=out, every_s=OFTEN).start()
    wait_until(lambda: out.getvalue() != "")
    progress.close()
    progress.close()
    text = out.getvalue()
    time.sleep(5 * OFTEN)
    assert out.getvalue() == text


def test_failed_work_does_not_claim_to_be_done() -> None:
    out = io.StringIO()
    progress = Progress("reading", 3, "files", stream=out, every_s=OFTEN).start()
    wait_until(lambda: out.getvalue() != "")
    progress.__exit__(RuntimeError, RuntimeError(), None)
    assert " in 0:" not in out.getvalue()


def test_work_of_unknown_length_has_no_end() -> None:
    out = io.StringIO()
    with Progress("reading", None, "files", stream=out, every_s=OFTEN) as progress:
        time.sleep(2 * OFTEN)
        progress.update(7)
    assert re.match(r"reading: 7 files, [\d.]+(/s| s each), \d:\d\d:\d\d so far\n", out.getvalue())


def test_work_that_cannot_be_counted_tells_the_time_alone() -> None:
    out = io.StringIO()
    with Progress("ranks meet", None, "", stream=out, every_s=OFTEN).start():
        time.sleep(3 * OFTEN)
    lines = out.getvalue().splitlines()
    assert re.fullmatch(r"ranks meet, \d:\d\d:\d\d so far", lines[0])
    assert re.fullmatch(r"ranks meet in \d:\d\d:\d\d", lines[-1])


def test_items_done_before_do_not_count_for_the_speed() -> None:
    progress = Progress("reading", 100, "files", stream=io.StringIO(), done=90)
    time.sleep(0.1)
    progress.update(1)
    rate = float(re.search(r"([\d.]+)/s", progress.line()).group(1))
    progress.close()
    assert progress.line().startswith("reading: 91 of 100 files (91%)")
    assert rate < 20  # 1 item in over 0.1 s, not 91


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    out = Terminal()
    with Progress("reading", 4, "files", stream=out, every_s=OFTEN) as progress:
        time.sleep(0.15)  # tqdm draws at most every 0.1 s
        progress.update(2, note="loss 0.5")
        progress.update(2)
    drawn = out.getvalue()
    assert "\r" in drawn
    assert "2/4" in drawn
    assert "loss 0.5" in drawn
    assert "so far" not in drawn


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_a_line_of_its_own_goes_to_standard_output(
    make: Callable[[], io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    out = make()
    with Progress("reading", 4, "files", stream=out) as progress:
        progress.say("half of it is done")
    assert capsys.readouterr().out == "half of it is done\n"
    assert "half" not in out.getvalue()


@pytest.mark.parametrize(
    ("stream", "choice", "bar"),
    [
        (Terminal, "", True),
        (Terminal, "0", False),
        (io.StringIO, "", False),
        (io.StringIO, "1", True),
    ],
)
def test_a_variable_chooses(
    stream: Callable[[], io.StringIO], choice: str, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M4OE_PROGRESS", choice)
    assert on_terminal(stream()) is bar


def test_tracked_items_come_unchanged_and_are_counted() -> None:
    tracked = track(["a", "b", "c"], "reading", "files")
    seen = []
    for item in tracked:
        seen.append((item, tracked.progress.done))
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert (tracked.progress.done, tracked.progress.total) == (3, 3)
    assert track(iter("ab"), "reading", "files").progress.total is None


@pytest.mark.parametrize(
    ("seconds", "exact", "rounded"),
    [
        (0, "0:00:00", "0:00 h"),
        (59.9, "0:00:59", "0:01 h"),
        (3600, "1:00:00", "1:00 h"),
        (86_461, "24:01:01", "24:02 h"),
        (float("inf"), "?", "?"),
        (float("nan"), "?", "?"),
        (-1, "?", "?"),
    ],
)
def test_times_in_words(seconds: float, exact: str, rounded: str) -> None:
    assert (duration(seconds), hours(seconds)) == (exact, rounded)


def test_the_start_up_of_the_first_item_is_not_taken_for_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    work = Progress("reading", 111, "files", stream=io.StringIO())
    now[0] = 60.0
    work.update()
    assert work.line() == "reading: 1 of 111 files (1%), 60 s each, 0:01:00 so far"
    for _ in range(10):
        now[0] += 1.0
        work.update()
    assert work.line() == "reading: 11 of 111 files (10%), 1.0/s, 0:01:40 left"
    work.close()
