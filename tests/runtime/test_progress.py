"""How far a run is, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Pipeline, Producer, Status
from consecution.options import Options
from consecution.runtime import progress as display
from consecution.runtime.progress import Bar, Progress, make_display

STATUS = Status("running", 10, 5, 0, 5, 0, 0, 1.0, ())


def test_a_terminal_shows_one_line_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    progress = Progress(live=True)

    progress(STATUS)
    progress.clear()

    assert "\n" not in shown.getvalue()
    assert shown.getvalue().startswith("\rrunning: 5 done")
    assert shown.getvalue().endswith(" \r")


def test_elsewhere_a_line_comes_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, now_s = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr("consecution.runtime.progress.time.monotonic", lambda: now_s[0])
    progress = Progress(live=False)

    for second in range(12):
        now_s[0] = float(second)
        progress(STATUS)

    assert shown.getvalue().splitlines() == [str(STATUS)] * 2


def test_another_line_may_be_made_of_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)

    Progress(live=True, describe=lambda status: f"{status.completed} of 10")(STATUS)

    assert shown.getvalue() == "\r5 of 10"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error is one from now on; not in a fixture, after which pytest puts its own there."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return made


def test_a_bar_shows_the_share_and_what_is_printed_stays_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    shown: Any = make_display(Options())
    shown(Status("running", 5, 2, 0, 3, 0, 0, 1.0, (), expected=8))
    print("[a.0 77] a line of the log", file=sys.stderr)
    shown(Status("running", 8, 6, 1, 2, 0, 0, 2.0, (), expected=8))
    shown.clear()

    assert isinstance(shown, Bar)
    text = terminal.getvalue()
    assert " 25 %" in text
    assert " 75 %" in text
    assert "running: 6 of 8 done, 3/s, 2 pending, 1 failed, 2.0 s" in text
    assert "[a.0 77] a line of the log\n" in text
    assert text.endswith("\x1b[2K"), "the bar is taken away"
    assert sys.stderr is terminal


def test_a_dumb_terminal_shows_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, now_s = make_terminal(monkeypatch), [0.0]
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("consecution.runtime.progress.time.monotonic", lambda: now_s[0])

    shown: Any = make_display(Options())
    now_s[0] = 100.0
    shown(STATUS)
    shown.clear()

    assert terminal.getvalue() == f"{STATUS}\n"


def test_a_bar_goes_by_what_was_read_from_when_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    shown: Any = Bar()
    shown(Status("starting", 0, 0, 0, 0, 0, 0, 1.0, ()))
    assert "%" not in terminal.getvalue()
    shown(Status("running", 900, 800, 0, 100, 0, 0, 2.0, (), read_share=0.25))
    shown.clear()

    text = terminal.getvalue()
    assert "  25 %" in text
    assert "━" in text
    assert "running: 800 done, 25 % read, 400/s, 100 pending, 2.0 s" in text


def test_without_a_known_end_there_are_counts_and_a_rate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    shown = Bar()
    shown(STATUS)
    shown.clear()

    assert "running: 5 done, 5/s, 5 pending, 1.0 s" in terminal.getvalue()
    assert "%" not in terminal.getvalue()


def test_without_rich_a_terminal_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "rich.console", None)

    make_display(Options())(STATUS)

    assert terminal.getvalue().startswith("\rrunning: 5 done")


def test_in_a_log_of_json_objects_it_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    monkeypatch.setattr(display, "LINE_EVERY_S", 0.0)

    make_display(Options.of(log_format="json"))(STATUS)

    assert json.loads(terminal.getvalue())["text"] == str(STATUS)


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_a_run_shows_its_progress_if_asked_and_clears_it_whatever_happens(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Noted:
        def __call__(self, status: Status) -> None:
            seen.append(status.expected)
            raise KeyError("breaks the run")

        def clear(self) -> None:
            seen.append("cleared")

    monkeypatch.setattr(display, "make_display", lambda options: Noted())
    monkeypatch.setattr("consecution.engine.STATUS_EVERY_S", 0.01)
    pipeline = Pipeline([Producer([1, 2, 3], name="a"), Producer(range(4), name="b")] | Map(wait_a_little, name="wait"))

    with pytest.raises(KeyError, match="breaks the run"):
        pipeline.run(mode=mode, robustness="none", progress=True)
    assert seen == [7, "cleared"]


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_a_run_over_files_knows_how_much_of_them_was_read(mode: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.txt").write_text("a line\n" * 3)
    several = [Producer("files", tmp_path / "1.txt", name="a"), Producer("files", tmp_path / "2.txt", name="b")]
    seen = []

    with Pipeline(several | Map(wait_a_little, name="wait")).start(mode=mode, robustness="none") as running:
        while running.join(0.01) is None:
            seen.append(running.status())

    assert running.status().read_share == 1.0
    assert all(status.read_share is None or 0 <= status.read_share <= 1 for status in seen)
    assert running.status().expected is None


def test_where_one_source_does_not_know_nobody_does(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a line\n")
    sources = [Producer("files", tmp_path / "1.txt", name="a"), Producer(iter([1]), name="b")]

    with Pipeline(sources | Map(wait_a_little, name="wait")).start(mode="inline", robustness="none") as running:
        running.join(30)

    assert running.status().read_share is None


def wait_a_little(item: Any) -> Any:
    time.sleep(0.05)
    return item
