from __future__ import annotations

import re
from typing import Any

import pytest

from consecution import Map, Node, Options, Pipeline, Producer, Route
from consecution.error_policy import ErrorPolicy
from consecution.errors import GraphError
from consecution.nodes import RouterNode
from consecution.plan import Plan, make_plan
from consecution.protocol.values import Action, Treatment

ERROR = ValueError("no")


def plan_of(chain: Node, **options: Any) -> Plan:
    return make_plan((Producer([], name="source") | chain).top_node, Options.of(**options))


def raises(error: BaseException, item: Any) -> str:
    raise LookupError("not even that")


def test_on_error_reads_well_in_a_chain_and_gives_the_node_back() -> None:
    node = Map(str, name="text")

    assert node.on_error("retry", retries=5, delay_s=1.0) is node
    assert node.error_policy == ErrorPolicy("retry", 5, 1.0)
    assert (node * 4).error_policy == ErrorPolicy("retry", 5, 1.0)


@pytest.mark.parametrize("action", list(Action))
def test_a_word_is_the_answer(action: Action) -> None:
    policy = ErrorPolicy.of("N(a)", action.name.lower(), 2, 0.5)

    assert policy.judge(ERROR, 1) == Treatment(action, 2, 0.5)


def test_a_function_sees_the_live_exception_and_the_item() -> None:
    seen: list[Any] = []

    def decide(error: BaseException, item: Any) -> str:
        seen.append((error, item))
        return "stop"

    assert ErrorPolicy(decide).judge(ERROR, "item").action is Action.STOP
    assert seen == [(ERROR, "item")]


@pytest.mark.parametrize(
    ("decide", "note"),
    [
        (lambda error, item: "ignore", "on_error answered 'ignore'; expected 'retry', 'park' or 'stop'"),
        (lambda error, item: None, "on_error answered None"),
        (lambda error, item: [], r"on_error itself raised TypeError: .*unhashable|on_error answered \[\]"),
        (raises, "on_error itself raised LookupError: not even that; the item is parked"),
    ],
)
def test_a_function_that_gives_no_answer_parks_the_item_and_says_so(decide: Any, note: str) -> None:
    error = ValueError("no")

    assert ErrorPolicy(decide).judge(error, 1).action is Action.PARK
    (found,) = error.__notes__
    assert re.search(note, found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"action": "ignore"}, r"N\(text\)\.on_error\('ignore'\): expected 'retry', 'park', 'stop', or a function"),
        ({"action": 3}, r"on_error\(3\): expected 'retry'"),
        ({"retries": -1}, r"on_error\(retries=-1\): expected a whole number of 0 or more"),
        ({"retries": True}, r"on_error\(retries=True\)"),
        ({"retries": 1.5}, r"on_error\(retries=1\.5\)"),
        ({"delay_s": -1}, r"on_error\(delay_s=-1\): expected a number of seconds of 0 or more"),
        ({"delay_s": "1"}, r"on_error\(delay_s='1'\)"),
        ({"delay_s": float("nan")}, r"on_error\(delay_s=nan\)"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Map(str, name="text").on_error(**given)


def test_a_plan_holds_what_each_node_says_and_the_option_for_the_others() -> None:
    plan = plan_of(Map(str, name="a").on_error("park") | Map(str, name="b").on_error(retries=7), on_error="stop")

    assert plan.node("a").error_policy == ErrorPolicy("park")
    assert plan.node("b").error_policy == ErrorPolicy("stop", 7)
    assert plan.node("source").error_policy == ErrorPolicy("stop")


def test_an_attribute_of_that_name_is_refused_in_a_run_and_left_alone_in_consume() -> None:
    class Old(Node):
        def process(self, item: Any) -> None:
            seen.append((item, self.on_error))

    seen: list[Any] = []
    with pytest.raises(GraphError, match=r"N\(old\): on_error='park' is only an attribute; write .*on_error\('park'\)"):
        plan_of(Old("old", on_error="park"))

    Pipeline(Old("old", on_error="park")).consume([1])

    assert seen == [(1, "park")]


def test_a_router_has_no_policy_of_its_own() -> None:
    chain = Map(str, name="text") | Route([Map(str, name="a"), Map(str, name="b")])
    (router,) = (node for node in chain.all_nodes if isinstance(node, RouterNode))
    router.on_error("park")

    with pytest.raises(GraphError, match="a router is part of the node before it; say on_error"):
        plan_of(chain)
