from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from consecution.report import Failure, NodeCounts, Report, SourceCounts, Status

MOST_COLUMNS = 100
PLAIN = Report(
    emitted=10,
    completed=10,
    failed=0,
    pending=0,
    replayed=0,
    restarts=0,
    confirmed=True,
    failures=(),
    seconds=2.0,
    nodes=(NodeCounts("source", 1, 10, 10, 0, 0.5), NodeCounts("parse", 4, 10, 1_234_567, 0, 1.25)),
    mode="process",
    robustness="robust",
    state_dir="state",
    stopped=False,
    already_finished=False,
)


def report(**changes: Any) -> Report:
    return dataclasses.replace(PLAIN, **changes)


def failure(item: Any = "x", node: str = "parse", error: str = "ValueError: no", attempts: int = 4) -> Failure:
    return Failure(node, item, error, "Traceback ...", attempts)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"failed": 1}, 1),
        ({"completed": 4, "pending": 6, "stopped": True}, 3),
        ({"completed": 4, "pending": 6, "failed": 2, "stopped": True}, 3),
        ({"stopped": True}, 0),
        ({"already_finished": True}, 0),
    ],
)
def test_the_exit_code_says_completed_failed_or_pending(changes: dict[str, Any], code: int) -> None:
    assert report(**changes).exit_code == code


def test_totals_come_before_nodes_and_nodes_before_the_next_step() -> None:
    text = str(report())

    places = [text.index(part) for part in ("emitted 10 = completed 10 + pending 0", "parse", "Nothing is left to do.")]
    assert places == sorted(places)
    assert "1,234,567" in text


def test_books_that_do_not_balance_are_shown_as_such() -> None:
    assert "emitted 10 ≠ completed 9 + pending 0" in str(report(completed=9))


def test_pending_items_name_the_state_directory_to_go_on_with() -> None:
    text = str(report(completed=4, pending=6, stopped=True))

    assert text.splitlines()[-1] == "6 items are pending: run again with state_dir='state' to go on."


def test_pending_items_without_a_journal_are_said_to_be_lost() -> None:
    assert "6 items were lost" in str(report(completed=4, pending=6, robustness="track", confirmed=False))


def test_a_stop_that_left_nothing_open_says_that_the_stream_goes_on() -> None:
    text = str(report(stopped=True))

    assert text.startswith("Stopped before the end of the stream")
    assert text.splitlines()[-1] == "What was taken is completely processed; run again with state_dir='state' to go on."


def test_a_stop_without_a_state_directory_says_what_one_is_good_for() -> None:
    assert "with a state_dir, the next run" in str(report(stopped=True, state_dir=None))


def test_a_stop_of_what_keeps_nothing_promises_no_more_than_there_is() -> None:
    text = str(report(stopped=True, state_dir=None, robustness="track"))

    assert "with a state_dir" not in text
    assert "with robustness='robust', a run can be gone on with" in text


def test_failures_without_tracking_point_to_track() -> None:
    assert "robustness='track'" in str(report(failed=1, robustness="confirm", confirmed=False))


def test_a_finished_run_says_how_to_start_afresh() -> None:
    text = str(report(already_finished=True))

    assert text.startswith("This run was finished before")
    assert "--fresh" in text


def test_a_failure_is_listed_with_node_item_error_and_attempts() -> None:
    text = str(report(failed=1, failures=(failure(item=("a", 1)),)))

    assert "at parse after 4 tries: ('a', 1)" in text
    assert "ValueError: no" in text


def test_one_try_is_not_called_tries() -> None:
    assert "after 1 try:" in str(report(failed=1, failures=(failure(attempts=1),)))


def test_only_the_last_failures_are_listed_and_the_rest_counted() -> None:
    failures = tuple(failure(item=f"item {n}") for n in range(12))

    text = str(report(failed=12, failures=failures))

    assert "item 11" in text
    assert "item 1\n" not in text
    assert "... and 2 more, in report.failures" in text


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"state_dir": "my state"}, "`consecution failed list 'my state'`"),
        ({"state_dir": None}, "the report that --json prints"),
        ({"robustness": "track"}, "the report that --json prints"),
    ],
)
def test_the_command_line_is_told_of_commands_and_of_no_object(changes: dict[str, Any], place: str) -> None:
    kept = tuple(failure(item=f"item {n}") for n in range(12))

    few = report(failed=12, failures=kept, **changes).to_text(at_command_line=True)
    many = report(failed=500, failures=kept, **changes).to_text(at_command_line=True)

    assert f"... and 2 more, in {place}\n" in few
    assert f"... and 490 more; the last 12 are in {place}\n" in many
    assert place in few.splitlines()[-1]
    assert "report.failures" not in few + many


def test_more_failures_than_were_kept_are_not_promised() -> None:
    failures = tuple(failure(item=f"item {n}") for n in range(12))

    text = str(report(failed=500, failures=failures))

    assert "... and 490 more; the last 12 are in report.failures" in text


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, "`consecution failed list state` lists all failed items."),
        ({"state_dir": None}, "raise keep_failed or name a state_dir, which keeps all, to have more."),
        ({"state_dir": None, "robustness": "track"}, "raise keep_failed to have more."),
    ],
)
def test_where_a_report_does_not_hold_all_failures_it_says_how_to_have_them(changes: dict[str, Any], step: str) -> None:
    text = str(report(failed=500, failures=(failure(), failure()), **changes))

    assert text.endswith(f"\nThe tracebacks of the last 2 are in report.failures; {step}")
    assert "Each failed item" not in text
    none_kept = str(report(failed=500, **changes))
    assert none_kept.endswith(f"\nNo failed item was kept for the report; {step}")


def test_no_line_is_wider_than_a_hundred_columns() -> None:
    long = failure(item="x" * 500, node="a_node_with_quite_a_long_name", error="E: " + "y\n" * 300)

    text = str(report(failed=1, failures=(long,)))

    assert max(map(len, text.splitlines())) <= MOST_COLUMNS


def test_an_item_whose_repr_raises_is_shown_by_its_type() -> None:
    text = str(report(failed=1, failures=(failure(item=Unprintable()),)))

    assert "<Unprintable, whose repr raises RuntimeError>" in text


def test_a_report_goes_through_json_and_back() -> None:
    sent = report(failed=2, failures=(failure(item=("a", 1)), failure(item="plain")), result=object())

    back = Report.from_dict(json.loads(json.dumps(sent.to_dict())))

    assert [f.item for f in back.failures] == ["('a', 1)", "plain"]
    assert dataclasses.replace(back, failures=()) == dataclasses.replace(sent, failures=(), result=None)


def test_a_status_line_leaves_out_what_did_not_happen() -> None:
    quiet = Status("running", 1200, 1000, 0, 200, 0, 0, 2.0, ())
    busy = dataclasses.replace(quiet, failed=1, replayed=2, restarts=3)

    assert str(quiet) == "running: 1,000 done, 500/s, 200 pending, 2.0 s"
    assert str(busy) == "running: 1,000 done, 500/s, 200 pending, 1 failed, 2 batches replayed, 3 restarts, 2.0 s"


def test_rates_leave_out_what_earlier_runs_have_done() -> None:
    paused = Status("paused", 1200, 1000, 0, 200, 0, 0, 2.0, (), completed_before=1000)

    assert str(paused) == "paused: 1,000 done, 0/s, 200 pending, 2.0 s"
    assert "3/s" in str(dataclasses.replace(paused, completed=1006))
    assert dataclasses.replace(paused, completed=0).items_per_s == 0.0, "not all is known yet"
    assert "(1 items/s, process" in str(report(completed_before=8))


def test_a_status_without_time_has_no_rate() -> None:
    assert Status("starting", 0, 0, 0, 0, 0, 0, 0.0, ()).items_per_s == 0.0


def test_a_notebook_shows_tables_and_nothing_of_an_item_as_markup() -> None:
    shown = report(
        failed=1, failures=(failure("<script>"),), sources=(SourceCounts("source", 1_234, 1_234, 1, 0),)
    )._repr_html_()

    assert "<tr><td>source</td><td>1,234</td><td>1,234</td><td>0</td><td>1</td></tr>" in shown
    assert "<tr><td>parse</td><td>4</td><td>10</td><td>1,234,567</td><td>0</td><td>1.25</td></tr>" in shown
    assert "<tr><td>parse</td><td>4</td><td>&lt;script&gt;</td><td>ValueError: no</td></tr>" in shown
    assert shown.count("<table>") == shown.count("</table>") == 3


def test_a_status_tells_of_how_many_items_where_that_is_known() -> None:
    status = Status("running", 10, 5, 0, 5, 0, 0, 1.0, (), expected=1_000)

    assert str(status) == "running: 5 of 1,000 done, 5/s, 5 pending, 1.0 s"
