from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from consecution import Chunk, KeyedNode, Map, Node, Pipeline, Producer, Reduce, SqlSink, StatefulNode, TextLines
from consecution.cli import main
from consecution.runtime import state_table
from consecution.runtime.journal_check import check_state_dir


class Tally(KeyedNode):
    """A count for each key; the key "gone" is removed again."""

    def key(self, item: Any) -> Any:
        return item

    def process(self, item: Any) -> None:
        self.state["count"] = self.state.get("count", 0) + 1
        self.push(item)


class Total(StatefulNode):
    def initial_state(self) -> int:
        return 0

    def process(self, item: Any) -> None:
        self.state = self.state + 1
        self.push(item)


class Latest(StatefulNode):
    def process(self, item: Any) -> None:
        self.state["latest"] = item
        if "first" not in self.state:
            self.state["first"] = item


class Orders(Node):
    """Holds one of its orders twice."""

    def begin(self) -> None:
        self.orders: list[list[int]] = []
        self.current: list[int] = []
        self.count = 0

    def process(self, item: int) -> None:
        self.count += 1
        if not item % 3:
            self.current = []
            self.orders.append(self.current)
        self.current.append(item)

    def end(self) -> None:
        self.push(self.orders)


ITEMS: list[Any] = ["Ada", 7, ("Ada", 7), b"x", "7", "Ada", "Blaise"]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    tally, total = Tally("tally") * 2, Total("total")
    lines = Map(str, name="text") | TextLines("lines", path=tmp_path / "out.txt")
    pipeline = Pipeline(Producer(ITEMS) | tally | [total | [Latest("latest"), Chunk(3, name="chunk")], lines])
    pipeline.run(mode="inline", state_dir=tmp_path / "state")
    return tmp_path / "state"


def printed(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_durable_nodes_are_listed_with_what_they_keep(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "state", "list", state_dir)

    assert text.splitlines()[-2:] == [
        "tally   a state for each key, 2 replicas, 6 states",
        "total   a value, 1 replica, 1 states",
    ]
    found = {node["node"]: node for node in lines_of(printed(capsys, "state", "list", state_dir, "--json"))}
    assert found["tally"] == {"node": "tally", "kind": "keyed", "replicas": 2, "states": 6}
    assert found["latest"]["kind"] == "mapping"
    assert found["lines"] == {"node": "lines", "kind": "file", "replicas": 1, "states": 0}


@pytest.mark.parametrize(
    ("key", "count"),
    [("Ada", 2), ("7", 1), ('"7"', 1), ('["Ada", 7]', 1), ("('Ada', 7)", 1), ("b'x'", 1), ("Blaise", 1)],
)
def test_a_state_is_found_by_its_key(state_dir: Path, capsys: pytest.CaptureFixture[str], key: str, count: int) -> None:
    assert printed(capsys, "state", "get", state_dir, "tally", key) == f"{{'count': {count}}}\n"


def test_a_number_and_a_text_are_told_apart(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, meant in (("7", 7), ('"7"', "7")):
        assert lines_of(printed(capsys, "state", "get", state_dir, "tally", key, "--json"))[0]["key"] == meant


def test_without_a_key_all_states_of_a_node_are_shown(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "state", "get", state_dir, "total") == "7\n"
    first, latest = sorted(printed(capsys, "state", "get", state_dir, "latest").splitlines())
    assert first.partition(":")[0] == "'first'"
    assert latest in [f"'latest': {item!r}" for item in ITEMS], "which of them depends on their replicas"
    assert "'length': " in printed(capsys, "state", "get", state_dir, "lines")


def test_attributes_that_share_something_are_shown_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Pipeline(Producer(range(5)) | Orders("orders") | Map(str, name="text")).run(mode="inline", state_dir=tmp_path)

    found = lines_of(printed(capsys, "state", "list", tmp_path, "--json"))
    assert found == [{"node": "orders", "kind": "attributes", "replicas": 1, "states": 3}]
    lines = printed(capsys, "state", "get", tmp_path, "orders").splitlines()
    assert sorted(lines) == ["'count': 5", "'current': [3, 4]", "'orders': [[0, 1, 2], [3, 4]]"]
    assert printed(capsys, "state", "get", tmp_path, "orders", "current") == "[3, 4]\n"
    exported = lines_of(printed(capsys, "state", "export", tmp_path))
    assert {line["key"]: line["state"] for line in exported} == {
        "count": 5,
        "current": [3, 4],
        "orders": [[0, 1, 2], [3, 4]],
    }


def test_what_is_not_there_is_told_with_what_is(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["state", "get", str(state_dir), "nope"]) == 2
    assert "there is no durable node 'nope'; there are chunk, latest, lines, tally, total" in capsys.readouterr().err
    assert main(["state", "get", str(state_dir), "tally", "Eve"]) == 2
    assert "tally has no state under Eve" in capsys.readouterr().err


def test_a_key_of_what_has_none_is_told_what_there_is(
    state_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = SqlSink("rows", f"sqlite:///{tmp_path / 'rows.db'}", "t", columns=["n"])
    Pipeline(Producer([(1,)]) | rows).run(mode="inline", state_dir=tmp_path / "rows")

    for state, node, said in (
        (state_dir, "total", "it keeps a value; leave the key out to see it"),
        (state_dir, "lines", "it keeps where its files end; leave the key out to see it"),
        (tmp_path / "rows", "rows", "it keeps which transaction its database has taken in; look into its table"),
    ):
        assert main(["state", "get", str(state), node, "x"]) == 2
        assert f"{node} has no keys, and so no state under x: {said}" in capsys.readouterr().err


def test_an_export_loses_nothing(state_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("state", "export", state_dir, "--node", "tally")
    told = printed(capsys, *words, "--output", tmp_path / "tally.jsonl")
    lines = lines_of((tmp_path / "tally.jsonl").read_text())

    assert told == f"6 states written to {tmp_path / 'tally.jsonl'}\n"
    assert lines == lines_of(printed(capsys, *words))
    back = {}
    for line in lines:
        key, state = (
            pickle.loads(base64.b64decode(line["pickle"])) if "pickle" in line else (line["key"], line["state"])
        )
        back[key] = state["count"]
    assert back == {"Ada": 2, 7: 1, ("Ada", 7): 1, b"x": 1, "7": 1, "Blaise": 1}


def test_the_log_and_the_table_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some states are merged into the table, some only in the log, some in both, with another value there."""
    monkeypatch.setattr(state_table, "LOG_LIMIT_KEYS", 20)
    items = [n % 30 for n in range(100)]
    count = Reduce(lambda item: item, 0, lambda n, _: n + 1, "count")
    Pipeline(Producer(items) | count | Map(str, name="text")).run(
        mode="inline", state_dir=tmp_path / "state", batch_size=7, max_pending=1
    )
    summary = next(origin for origin in check_state_dir(tmp_path / "state").origins if origin.name == "count.0")
    assert summary.keys + 7 * summary.logged > 30, "nothing is in both"

    found = lines_of(printed(capsys, "state", "export", tmp_path / "state"))

    assert sorted((line["key"], line["state"]) for line in found) == [(n, items.count(n)) for n in range(30)]
    for key in (0, 9, 29):
        assert printed(capsys, "state", "get", tmp_path / "state", "count", key) == f"{items.count(key)}\n"
