"""Failed edges over every engine: what is given up at a node arrives at its handler, once, and counts as handled."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import Failure, JsonLines, KeyedNode, Map, Node, Pipeline, Producer, Report, Running, TextLines
from consecution.errors import StoppedByItemError
from consecution.runtime import failpoints
from consecution.runtime.failures import FailureStore, Selection, look, read_edited
from consecution.runtime.journal_check import check_state_dir
from tests.engines.nodes import Collect, collected
from tests.engines.poisonous import Poisoned

MODES = ("inline", "thread", "process")
LEVELS = ("none", "confirm", "track", "robust")
DEADLINE_S = 60.0
SEED = int(os.environ.get("CONSECUTION_SEED", random.randrange(10**6)))


class Picky(Node):
    """Raises at every third item."""

    def process(self, item: Any) -> None:
        refuse_thirds(item)
        self.push(item)


class PickyKeyed(KeyedNode):
    """The same, and durable."""

    def key(self, item: Any) -> int:
        return item % 2

    def process(self, item: Any) -> None:
        self.state["seen"] = self.state.get("seen", 0) + 1
        refuse_thirds(item)
        self.push(item)


class Owned(KeyedNode):
    """Items without an owner have no key, and no list is one."""

    def key(self, item: Any) -> Any:
        return item["owner"]

    def process(self, item: Any) -> None:
        self.push(item)


class Gathering(KeyedNode):
    """A durable handler: it counts what failed of each node, and says so at the end."""

    def key(self, failure: Failure) -> str:
        return failure.node

    def process(self, failure: Failure) -> None:
        self.state["count"] = self.state.get("count", 0) + failure.attempts

    def end(self) -> None:
        for node, state in self.states():
            self.push((node, state["count"]))


class PushesAtItsEnd(Node):
    def process(self, item: Any) -> None:
        self.push(item)

    def end(self) -> None:
        for item in range(100, 110):
            self.push(item)


class SelfKilling(Node):
    """Kills its worker at the first item it ever gets."""

    def __init__(self, name: str, token: Path) -> None:
        super().__init__(name)
        self.token = token

    def process(self, item: Any) -> None:
        if not self.token.exists():
            self.token.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.push(item)


def refuse_thirds(item: Any) -> None:
    if item % 3 == 0:
        raise ValueError(f"no thirds: {item}")


def refuse_sixes(failure: Failure) -> Any:
    if failure.item % 6 == 0:
        raise LookupError("not even here")
    return failure.item


def brief(failure: Failure) -> tuple[str, Any, str, int]:
    return failure.node, failure.item, failure.error, failure.attempts


def which(failure: Failure) -> str:
    if failure.item == 9:
        raise ValueError("no way for nines")
    return "odd" if failure.item % 2 else "even"


def item_of(failure: Failure) -> Any:
    return failure.item


def owner_of(item: Any) -> Any:
    return item["owner"]


def whole_numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[Picky, PickyKeyed])
def picky(request: pytest.FixtureRequest) -> Node:
    made: Node = request.param("picky")
    return made


@pytest.fixture
def go(mode: str, tmp_path: Path) -> Callable[..., Report]:
    def run(chain: Node, items: Any = None, **given: Any) -> Report:
        return Pipeline(chain).run(items, **options(mode, tmp_path, **given))

    return run


def options(mode: str, folder: Path, **given: Any) -> Any:
    found = {"mode": mode, "sync": "process", "retry_delay_s": 0.001, "retries": 1, **given}
    if found.get("robustness", "robust") == "robust":
        found.setdefault("state_dir", folder / "state")
    return found


def assert_handled(report: Report, items: int, handled: int) -> None:
    assert (report.emitted, report.completed, report.open) == (items, items, 0)
    assert (report.failed, report.handled, report.failures) == (0, handled, ())
    assert report.confirmed is (None if report.robustness == "none" else True)
    assert report.exit_code == 0


@pytest.mark.parametrize("level", LEVELS)
def test_given_up_items_arrive_at_the_handler_and_are_not_failed(
    mode: str, level: str, picky: Node, go: Callable[..., Report], tmp_path: Path
) -> None:
    picky.failed | Map(brief) | Collect("bad", tmp_path / "bad")
    chain = picky * (1 if isinstance(picky, Picky) else 2) | Collect("good", tmp_path / "good")

    report = go(chain, range(30), robustness=level, batch_size=7)

    tries = 2 if level == "robust" else 1
    expected = [("picky", n, f"ValueError: no thirds: {n}", tries) for n in range(0, 30, 3)]
    assert sorted(collected(tmp_path / "bad")) == expected
    assert sorted(collected(tmp_path / "good")) == [n for n in range(30) if n % 3]
    assert_handled(report, 30, 10)
    assert "handled 10" in str(report)
    if level == "robust":
        assert check_state_dir(tmp_path / "state").problems == ()


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_item_without_a_key_fails_at_the_keyed_node_however_many_replicas_that_has(
    replicas: int, go: Callable[..., Report], tmp_path: Path
) -> None:
    owned = Owned("owned").on_error("park")
    owned.failed | Map(item_of) | Collect("bad", tmp_path / "bad")
    good, beside = Collect("good", tmp_path / "good"), Collect("beside", tmp_path / "beside")
    items: list[Any] = [{"owner": "ann"}, {"n": 1}, {"owner": "bob"}, {"owner": ["ann"]}, {"owner": "cid"}]

    report = go(Map(dict, "before") | [owned * replicas | good, beside], items)

    assert sorted(collected(tmp_path / "bad"), key=str) == [items[1], items[3]]
    assert sorted(map(owner_of, collected(tmp_path / "good"))) == ["ann", "bob", "cid"]
    assert collected(tmp_path / "beside") == items
    assert_handled(report, 5, 2)


def test_what_arrives_is_a_failure_that_json_lines_write_as_an_object(
    go: Callable[..., Report], tmp_path: Path
) -> None:
    node = Map(lambda item: 1 // item["by"], "divide").on_error("park")
    node.failed | JsonLines("bad", tmp_path / "bad.jsonl")

    report = go(node, [{"by": 0}, {"by": 0, "set": {1}}])

    written = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [list(line) for line in written] == [["node", "item", "error", "traceback", "attempts"]] * 2
    assert [line["item"] for line in written] == [{"by": 0}, "{'by': 0, 'set': {1}}"]
    assert {(line["node"], line["attempts"]) for line in written} == {("divide", 1)}
    assert all("1 // item" in line["traceback"] for line in written)
    assert_handled(report, 2, 2)


def test_several_nodes_share_a_durable_handler_that_ends_after_them(go: Callable[..., Report], tmp_path: Path) -> None:
    first, second = Picky("first").on_error("park"), PickyKeyed("second") * 2
    shift = Map(lambda n: n + 1, "shift")
    chain = first | shift | second
    [first.failed, second.failed] | Gathering("gathering") * 2 | Collect("out", tmp_path / "out")

    report = go(chain, range(12))

    assert sorted(collected(tmp_path / "out")) == [("first", 4), ("second", 2 * 4)]
    assert_handled(report, 12, 8)


def test_items_are_mended_and_join_those_that_did_not_fail(go: Callable[..., Report], tmp_path: Path) -> None:
    picky = Picky("picky").on_error("park")
    chain = Producer(range(12)) | picky
    [picky, picky.failed | Map(lambda failure: -failure.item, "mend")] | Collect("out", tmp_path / "out")

    report = go(chain)

    assert sorted(collected(tmp_path / "out")) == sorted(-n if n % 3 == 0 else n for n in range(12))
    assert_handled(report, 12, 4)


def test_behind_the_edge_stand_lists_routes_and_replicas(go: Callable[..., Report], tmp_path: Path) -> None:
    picky = Picky("picky")
    odd, even, keyed = Map(item_of, "odd") * 2, Map(item_of, "even") * 2, Map(item_of, "keyed").by(item_of) * 3
    picky.failed | [[odd, even, which], keyed]
    [odd, even] | Collect("routed", tmp_path / "routed")
    keyed | Collect("all", tmp_path / "all")

    report = go(picky, range(30))

    # As everywhere, an item that one of the ways refuses takes none of them.
    assert sorted(collected(tmp_path / "routed")) == [n for n in range(0, 30, 3) if n != 9]
    assert sorted(collected(tmp_path / "all")) == [n for n in range(0, 30, 3) if n != 9]
    assert (report.failed, report.handled, report.completed, report.open) == (1, 10, 30, 0)
    (failure,) = report.failures
    assert (failure.node, failure.item.item) == ("picky", 9)
    assert (failure.error, failure.attempts) == ("ValueError: no way for nines", 2)


def test_what_a_router_on_the_edge_refuses_is_treated_as_the_node_of_the_edge_says_and_not_the_source(
    go: Callable[..., Report], tmp_path: Path
) -> None:
    picky = Picky("picky").on_error("retry", retries=2)
    picky.failed | [Map(item_of, "odd"), Map(item_of, "even"), which]

    report = go(Producer(range(12)).on_error("stop") | picky | Collect("good", tmp_path / "good"))

    (failure,) = report.failures
    assert (failure.node, failure.item.item, failure.attempts) == ("picky", 9, 3)
    assert (report.failed, report.handled, report.completed, report.open) == (1, 4, 12, 0)


def test_what_fails_at_the_handler_is_kept_and_the_handlers_own_edge_takes_it(
    go: Callable[..., Report], tmp_path: Path
) -> None:
    picky, handler = Picky("picky"), Map(refuse_sixes, "handler")
    picky.failed | handler | Collect("mended", tmp_path / "mended")

    kept = go(picky, range(12))

    assert (kept.failed, kept.handled, kept.completed, kept.exit_code) == (2, 4, 12, 1)
    assert sorted((f.node, f.item.item, f.error, f.attempts) for f in kept.failures) == [
        ("handler", n, "LookupError: not even here", 2) for n in (0, 6)
    ]
    assert sorted(collected(tmp_path / "mended")) == [3, 9]

    picky, handler = Picky("picky"), Map(refuse_sixes, "handler")
    picky.failed | handler | Collect("mended", tmp_path / "mended again")
    handler.failed | Map(lambda failure: failure.item.item, "inner") | Collect("last", tmp_path / "last")
    handled = go(picky, range(12), state_dir=tmp_path / "state 2")
    assert_handled(handled, 12, 4 + 2)
    assert sorted(collected(tmp_path / "last")) == [0, 6]


def test_a_sink_has_a_failed_edge_too(go: Callable[..., Report], tmp_path: Path) -> None:
    sink = TextLines("sink", tmp_path / "out", format=lambda item: str(item + 0))
    sink.failed | Map(brief, "brief") | Collect("refused", tmp_path / "refused")

    report = go(sink.on_error("park"), [1, "two", 4])

    assert (tmp_path / "out").read_text() == "1\n4\n"
    ((node, item, error, attempts),) = collected(tmp_path / "refused")
    assert (node, item, attempts) == ("sink", "two", 1)
    assert error.startswith("TypeError: can only concatenate str")
    assert_handled(report, 3, 1)


def test_source_items_that_cannot_be_journalled_go_over_the_sources_edge(
    go: Callable[..., Report], tmp_path: Path
) -> None:
    source = Producer(give_unpicklable)
    source.failed | Map(brief, "brief") | Collect("unsent", tmp_path / "unsent")

    report = go(source | Collect("out", tmp_path / "out"))

    ((node, shown, error, attempts),) = collected(tmp_path / "unsent")
    assert (node, attempts) == ("producer", 1)
    assert "generator" in shown  # the item could not be kept, only its repr
    assert "pickle" in error
    assert sorted(collected(tmp_path / "out")) == [1, 2]
    assert_handled(report, 3, 1)


def give_unpicklable() -> Iterator[Any]:
    yield 1
    yield (n for n in range(3))
    yield 2


def test_what_a_node_pushes_at_its_end_may_be_given_up_too(go: Callable[..., Report], tmp_path: Path) -> None:
    for level in ("track", "robust"):
        picky = Picky("picky").on_error("park")
        picky.failed | Map(item_of) | Collect("bad", tmp_path / f"bad {level}")

        report = go(PushesAtItsEnd("last words") | picky, range(3), robustness=level)

        assert sorted(collected(tmp_path / f"bad {level}")) == [0, 102, 105, 108]
        assert_handled(report, 3, 4)


def test_an_item_that_is_to_stop_the_run_is_kept(mode: str, picky: Node, tmp_path: Path) -> None:
    picky.on_error("stop").failed | Collect("bad", tmp_path / "bad")
    chain = Producer(whole_numbers) | picky

    with pytest.raises(StoppedByItemError, match="the item is kept as failed") as caught:
        Pipeline(chain).run(**options(mode, tmp_path))

    assert caught.value.report.failed >= 1
    assert caught.value.report.handled == 0


def test_a_receipt_waits_for_the_handler_and_says_that_nothing_failed(mode: str, tmp_path: Path) -> None:
    picky = Picky("picky")
    picky.failed | Map(item_of) | Collect("bad", tmp_path / "bad")
    with Pipeline(Producer("manual") | picky).start(**options(mode, tmp_path)) as running:
        receipt = running.push(3)
        assert receipt.wait(DEADLINE_S)
        assert not receipt.failed
        if mode != "process":  # whose status is told four times a second
            assert running.status().handled == 1

    assert collected(tmp_path / "bad") == [3]


def test_what_was_kept_before_the_edge_was_there_stays_until_it_is_put_back(mode: str, tmp_path: Path) -> None:
    def start(*, edge: bool) -> Running:
        picky = Picky("picky").on_error("park")
        if edge:
            picky.failed | Map(item_of, "item") | Collect("bad", tmp_path / "bad")
        return Pipeline(Producer("manual") | picky).start(**options(mode, tmp_path))

    with start(edge=False) as running:
        assert running.push(3).wait(DEADLINE_S)
        before = running.stop()
    with start(edge=True) as running:
        assert running.push(6).wait(DEADLINE_S)
        after = running.stop()
    with FailureStore(tmp_path / "state") as store:
        store.retry(Selection())
    with start(edge=True) as running:
        last = running.stop()

    assert (before.failed, before.handled) == (1, 0)
    assert (after.failed, after.handled, collected(tmp_path / "bad")[:1]) == (1, 1, [6])
    assert (last.failed, last.handled, last.open) == (0, 2, 0)
    assert collected(tmp_path / "bad") == [6, 3]


def test_an_item_that_failed_on_an_edge_that_is_gone_is_kept(mode: str, tmp_path: Path) -> None:
    def start(*, edge: bool) -> Running:
        picky = Picky("picky")
        if edge:
            picky.failed | [Map(item_of, "odd"), Map(item_of, "even"), which]
        return Pipeline(Producer("manual") | picky).start(**options(mode, tmp_path, retries=0))

    with start(edge=True) as running:
        assert running.push(9).wait(DEADLINE_S)
        before = running.stop()
    with start(edge=False) as running:
        running.stop()
    with FailureStore(tmp_path / "state") as store:
        store.retry(Selection())
    with start(edge=False) as running:
        after = running.stop()

    assert [failure.error for failure in before.failures] == ["ValueError: no way for nines"]
    assert (before.failed, after.failed, after.handled, after.open) == (1, 1, 1, 0)
    (failure,) = after.failures
    assert (failure.node, failure.item.item) == ("picky", 9)
    assert failure.error == "GraphError: picky.failed leads nowhere any more; connect a handler, or drop the item"


@pytest.mark.parametrize("as_exported", [False, True])
def test_what_failed_on_an_edge_goes_to_the_source_without_the_failure_around_it(
    mode: str, tmp_path: Path, as_exported: bool
) -> None:
    def start() -> Running:
        picky = Picky("picky")
        picky.failed | [Map(item_of, "odd"), Map(item_of, "even"), which]
        return Pipeline(Producer("manual") | picky).start(**options(mode, tmp_path, retries=0))

    with start() as running:
        assert running.push(9).wait(DEADLINE_S)
        running.stop()
    (before,) = look(tmp_path / "state")
    edited = read_edited(iter([json.dumps(before.to_dict())]), "an export") if as_exported else None
    with FailureStore(tmp_path / "state") as store:
        store.retry(Selection(), edited=edited, at_source=True)
    with start() as running:
        report = running.stop()
    (after,) = look(tmp_path / "state")

    assert (report.emitted, report.completed, report.failed) == (2, 2, 1)
    # It has gone all the way again: picky takes numbers.
    assert (before.id, after.id) == ("producer:0", "producer:1")
    assert [kept.item().item for kept in (before, after)] == [9, 9]
    assert after.item().error == "ValueError: no thirds: 9"


# -- deaths --------------------------------------------------------------------------------------


def test_poison_arrives_with_the_way_it_died(tmp_path: Path) -> None:
    bad = Poisoned("bad", {33: "segfault", 7: "exit"}) * 2
    bad.failed | JsonLines("bad items", tmp_path / "bad.jsonl")

    report = Pipeline(Producer(range(60)) | bad | TextLines("out", tmp_path / "out")).run(
        **options("process", tmp_path, batch_size=20)
    )

    found = {line["item"]: line for line in map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())}
    assert set(found) == {7, 33}
    assert "killed by SIGSEGV" in found[33]["error"]
    assert "poisonous.py" in found[33]["traceback"]
    assert "exit code 3" in found[7]["error"]
    assert_handled(report, 60, 2)


@pytest.mark.parametrize("kind", [Picky, PickyKeyed])
def test_a_handler_whose_worker_dies_gets_every_item_once(kind: type[Node], tmp_path: Path) -> None:
    picky = kind("picky")
    picky.failed | SelfKilling("dies", tmp_path / "token") | Map(item_of) | TextLines("bad", tmp_path / "bad")

    report = Pipeline(Producer(range(60)) | picky | TextLines("out", tmp_path / "out")).run(
        **options("process", tmp_path, batch_size=10)
    )

    assert Counter(map(int, (tmp_path / "bad").read_text().split())) == Counter(range(0, 60, 3))
    assert Counter(map(int, (tmp_path / "out").read_text().split())) == Counter(n for n in range(60) if n % 3)
    assert report.restarts == 1
    assert_handled(report, 60, 20)


@pytest.mark.parametrize("kind", [Picky, PickyKeyed])
@pytest.mark.parametrize("point", ["origin.before_commit", "origin.committed", "origin.launched", "origin.told"])
def test_killed_around_the_birth_every_item_arrives_once(
    kind: type[Node], point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = random.Random(f"{SEED} {kind.__name__} {point}").randint(1, 6)
    print(f"CONSECUTION_SEED={SEED}: whichever origin passes {point} first for the {passes}th time dies")
    token = tmp_path / "token"
    token.touch()
    monkeypatch.setenv(failpoints.VARIABLE, f"{point}@{passes}:{token}")
    picky = kind("picky")
    picky.failed | Map(item_of) | TextLines("bad", tmp_path / "bad")

    report = Pipeline(Producer(range(60)) | picky | TextLines("out", tmp_path / "out")).run(
        **options("process", tmp_path, batch_size=6, max_pending=2)
    )

    assert not token.exists(), "nobody was killed"
    assert Counter(map(int, (tmp_path / "bad").read_text().split())) == Counter(range(0, 60, 3))
    assert Counter(map(int, (tmp_path / "out").read_text().split())) == Counter(n for n in range(60) if n % 3)
    assert report.restarts >= 1
    assert_handled(report, 60, 20)
    assert check_state_dir(tmp_path / "state").problems == ()


def test_a_failure_survives_pickling() -> None:
    failure = Failure("node", {"a": 1}, "ValueError: no", "Traceback ...", 2)

    assert pickle.loads(pickle.dumps(failure)) == failure
