"""Items that take real workers down, again and again: they are found and left out, and nothing else is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Producer, Report, TextLines
from consecution.errors import WorldError
from tests.engines.misbehaving import Copy, Misbehaving
from tests.engines.poisonous import (
    Collapsing,
    DeadlyToDecode,
    DeadlyToShow,
    EncodesBadly,
    FailsOnce,
    Hungry,
    Poisoned,
    PoisonedRetry,
    Refusing,
    Slow,
    Spoiling,
    Tally,
    Tens,
    Totals,
    TwoPartsError,
    deadly_decision,
    deadly_key,
    spoiled,
)

COUNT = 60
OPTIONS: dict[str, Any] = {"mode": "process", "batch_size": 20, "sync": "process", "retries": 1, "retry_delay_s": 0.01}


def lines(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split()))


def all_but(*left_out: int, count: int = COUNT) -> list[int]:
    return [item for item in range(count) if item not in left_out]


def failures(report: Report) -> dict[Any, tuple[str, str]]:
    """Item → the node and the kind of error it was given up with."""
    return {failure.item: (failure.node, failure.error.partition(":")[0]) for failure in report.failures}


def assert_isolated(report: Report, *items: Any, node: str, source_count: int = COUNT) -> None:
    assert (report.emitted, report.completed, report.pending) == (source_count, source_count, 0)
    assert (report.failed, report.exit_code, report.stopped) == (len(items), 1, False)
    assert failures(report) == dict.fromkeys(items, (node, "PoisonError"))


# -- a stateless node ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "how", "stack"),
    [
        ("segfault", "killed by SIGSEGV", "poisonous.py"),
        ("exit", "exit code 3", "no stack"),
        ("hang with the interpreter", "killed by SIGABRT for hanging, no progress in ", "poisonous.py"),
    ],
)
def test_an_item_that_always_takes_its_worker_down_is_left_out(tmp_path: Path, way: str, how: str, stack: str) -> None:
    bad = Poisoned("bad", {33: way}) * 2
    timeout_s = 0.6 if way.startswith("hang") else 30.0

    report = Pipeline(Producer(range(COUNT)) | bad | TextLines("out", tmp_path / "out")).run(
        timeout_s=timeout_s, **OPTIONS
    )

    assert_isolated(report, 33, node="bad")
    assert lines(tmp_path / "out") == all_but(33)
    assert how in report.failures[0].error
    assert stack in report.failures[0].traceback
    assert report.failures[0].attempts == 1
    assert report.restarts == 4


def test_an_item_that_takes_its_worker_down_once_is_processed(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    bad = Misbehaving("bad", "segfault", 33, token)

    report = Pipeline(Producer(range(COUNT)) | bad | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert (report.failed, report.restarts, report.exit_code) == (0, 1, 0)
    assert lines(tmp_path / "out") == all_but()


def test_several_items_of_one_batch_are_found_whatever_max_restarts_says(tmp_path: Path) -> None:
    bad = Poisoned("bad", {3: "segfault", 7: "exit", 8: "kill"})

    report = Pipeline(Producer(range(COUNT)) | bad | TextLines("out", tmp_path / "out")).run(max_restarts=2, **OPTIONS)

    assert_isolated(report, 3, 7, 8, node="bad")
    assert lines(tmp_path / "out") == all_but(3, 7, 8)


def test_the_choice_of_the_way_on_may_take_a_worker_down_too(tmp_path: Path) -> None:
    behind = Copy("behind").by(deadly_key) * 2

    report = Pipeline(Producer(range(COUNT)) | Copy("bad") | behind | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert_isolated(report, 33, node="bad")
    assert lines(tmp_path / "out") == all_but(33)


def test_in_the_sources_own_worker_an_item_is_left_out_likewise(tmp_path: Path) -> None:
    behind = Copy("behind").by(deadly_key) * 2

    report = Pipeline(Producer(range(COUNT)) | behind | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert_isolated(report, 33, node="producer")
    assert lines(tmp_path / "out") == all_but(33)


def test_an_item_that_dies_on_its_way_into_the_journal_is_left_out_by_its_place(tmp_path: Path) -> None:
    report = Pipeline(Producer(EncodesBadly(COUNT, 33)) | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert lines(tmp_path / "out") == all_but(33)
    assert (report.emitted, report.completed, report.failed, report.exit_code) == (COUNT, COUNT, 1, 1)
    assert report.failures[0].node == "producer"
    assert "killed by SIGSEGV" in report.failures[0].error


def test_an_item_that_dies_of_being_shown_is_shown_no_more(tmp_path: Path) -> None:
    chain = Spoiling("spoil", 33, DeadlyToShow) | Refusing("bad") | TextLines("out", tmp_path / "out")

    report = Pipeline(Producer(range(COUNT)) | chain).run(**OPTIONS)

    assert lines(tmp_path / "out") == all_but(33)
    assert report.failed == 1
    assert report.failures[0].item.startswith("<DeadlyToShow, item ")
    assert "exit code 3" in report.failures[0].error


def test_an_item_that_dies_of_its_nodes_on_error_is_parked_unasked(tmp_path: Path) -> None:
    bad = Refusing("bad").on_error(deadly_decision)

    report = Pipeline(Producer(range(COUNT)) | bad | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert_isolated(report, 33, node="bad")
    assert lines(tmp_path / "out") == all_but(33)


def test_an_item_may_be_poison_when_it_is_tried_again(tmp_path: Path) -> None:
    bad = PoisonedRetry("bad", 33, tmp_path)

    report = Pipeline(Producer(range(COUNT)) | bad | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert_isolated(report, 33, node="bad")
    assert lines(tmp_path / "out") == all_but(33)
    assert report.failures[0].attempts == 2


def test_without_a_journal_deaths_are_what_they_were(tmp_path: Path) -> None:
    bad = Poisoned("bad", {33: "segfault"})

    report = Pipeline(Producer(range(COUNT)) | bad | TextLines("out", tmp_path / "out")).run(
        **OPTIONS | {"robustness": "track"}
    )

    assert (report.restarts, report.confirmed, report.failed) == (1, False, 0)


# -- durable nodes and sinks ---------------------------------------------------------------------


def totals_without(*left_out: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for item in all_but(*left_out):
        found[item % 7] = found.get(item % 7, 0) + item
    return found


@pytest.mark.parametrize("way", ["segfault", "exit"])
def test_the_state_of_a_keyed_node_holds_all_but_the_item_left_out(tmp_path: Path, way: str) -> None:
    report = Pipeline(
        Producer(range(COUNT)) | Copy("copy") | Totals("totals", 33, way) * 2 | TextLines("out", tmp_path / "out")
    ).run(**OPTIONS)

    assert_isolated(report, 33, node="totals")
    found = dict(map(eval, (tmp_path / "out").read_text().splitlines()))
    assert found == totals_without(33)


def test_what_was_gathered_is_left_out_and_not_the_item_that_came_after_it(tmp_path: Path) -> None:
    tens = Tens("tens", {10: "exit", 50: "segfault"})

    report = Pipeline(Producer(range(COUNT)) | Copy("copy") | tens | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert lines(tmp_path / "out") == [10, 30, 40, 50]
    assert (report.emitted, report.completed, report.pending, report.failed) == (COUNT, COUNT, 0, 2)
    assert [(failure.node, failure.item) for failure in report.failures] == [
        ("tens", [*range(10, 20)]),
        ("tens", [*range(50, 60)]),
    ]
    assert "exit code 3" in report.failures[0].error
    assert "killed by SIGSEGV" in report.failures[1].error
    assert report.restarts == 8


@pytest.mark.parametrize("after_decision", [True, False])
def test_a_sink_is_not_offered_the_item_it_dies_of(tmp_path: Path, after_decision: bool) -> None:
    sink = Collapsing("sink", tmp_path / "out", 33, after_decision=after_decision)

    report = Pipeline(Producer(range(COUNT)) | Copy("copy") | sink).run(**OPTIONS)

    assert_isolated(report, 33, node="sink")
    assert sorted(set(lines(tmp_path / "out"))) == all_but(33)


def test_the_progress_of_a_durable_node_is_seen_inside_a_frame(tmp_path: Path) -> None:
    Pipeline(Producer(range(20)) | Slow("slow") | TextLines("out", tmp_path / "out")).run(
        **OPTIONS | {"mode": "inline"}
    )

    assert lines(tmp_path / "out")[:20] == list(range(1, 21))


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit what a process takes")
def test_an_item_that_takes_too_much_memory_fails_like_one_that_raises(tmp_path: Path) -> None:
    pipeline = Pipeline(Producer([1, 2, 2000, 3]) | Hungry("hungry") | TextLines("out", tmp_path / "out"))

    report = pipeline.run(memory_limit_bytes=500 * 1024 * 1024, **OPTIONS)

    assert failures(report) == {2000: ("hungry", "MemoryError")}
    assert lines(tmp_path / "out") == [1, 2, 3]
    assert (report.restarts, report.failures[0].attempts) == (0, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can limit what a process takes")
def test_a_limit_no_worker_can_live_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="memory_limit_bytes=1000: a worker needs at least"):
        Pipeline(Producer([1]) | Copy("copy")).run(memory_limit_bytes=1000, **OPTIONS)


# -- what can be encoded but not decoded ---------------------------------------------------------


def test_an_item_that_cannot_be_decoded_fails_alone_where_it_arrives(tmp_path: Path) -> None:
    report = Pipeline(
        Producer(range(COUNT))
        | Spoiling("spoil", 33, TwoPartsError)
        | Copy("copy")
        | TextLines("out", tmp_path / "out")
    ).run(**OPTIONS)

    assert lines(tmp_path / "out") == all_but(33)
    assert (report.failed, report.restarts, report.exit_code) == (1, 0, 1)
    assert report.failures[0].node == "copy"
    assert "TypeError" in report.failures[0].error
    assert "TwoPartsError" in report.failures[0].item


def test_an_item_of_the_source_that_cannot_be_decoded_fails_alone_in_every_replay(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    items = [*range(10), spoiled(TwoPartsError), *range(10, 20)]
    die_once = Misbehaving("die", "kill", 15, token)

    report = Pipeline(Producer(lambda: iter(items)) | die_once | TextLines("out", tmp_path / "out")).run(**OPTIONS)

    assert lines(tmp_path / "out") == all_but(count=20)
    assert (report.emitted, report.completed, report.failed, report.restarts) == (21, 21, 1, 1)


@pytest.mark.parametrize("made", [TwoPartsError, DeadlyToDecode])
def test_a_durable_node_applies_all_but_what_it_cannot_decode(tmp_path: Path, made: type) -> None:
    report = Pipeline(
        Producer(range(COUNT)) | Spoiling("spoil", 33, made) | Tally("tally") | TextLines("out", tmp_path / "out")
    ).run(**OPTIONS)

    assert lines(tmp_path / "out") == [COUNT - 1]
    assert (report.emitted, report.completed, report.pending, report.failed) == (COUNT, COUNT, 0, 1)
    assert report.failures[0].node == "tally"
    assert report.exit_code == 1


def test_an_item_that_takes_down_whoever_decodes_it_is_left_out(tmp_path: Path) -> None:
    report = Pipeline(
        Producer(range(COUNT))
        | Spoiling("spoil", 33, DeadlyToDecode)
        | Copy("copy")
        | TextLines("out", tmp_path / "out")
    ).run(**OPTIONS)

    assert lines(tmp_path / "out") == all_but(33)
    assert (report.failed, report.restarts, report.exit_code) == (1, 4, 1)
    assert "killed by SIGSEGV" in report.failures[0].error


def test_what_is_made_of_a_retried_item_may_be_undecodable(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    pipeline = Pipeline(
        Producer([1, "bad", 2])
        | FailsOnce("once", token)
        | Spoiling("spoil", "bad", TwoPartsError)
        | Copy("copy")
        | TextLines("out", tmp_path / "out")
    )

    report = pipeline.run(**OPTIONS)

    assert lines(tmp_path / "out") == [1, 2]
    assert (report.failed, report.pending, report.failures[0].node) == (1, 0, "copy")


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_items_that_cannot_be_decoded_travel_where_tasks_share_them(tmp_path: Path, mode: str) -> None:
    report = Pipeline(
        Producer(range(COUNT))
        | Spoiling("spoil", 33, TwoPartsError)
        | Tally("tally")
        | TextLines("out", tmp_path / "out")
    ).run(**OPTIONS | {"mode": mode})

    assert lines(tmp_path / "out") == [COUNT - 1]
    assert (report.failed, report.failures[0].node) == (1, "tally")
