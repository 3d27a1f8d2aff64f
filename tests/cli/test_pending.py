"""`consecution journal list` and `journal replay`, over what runs that died have left."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consecution import KeyedNode, Node, Pipeline, Producer
from consecution.cli import main
from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.protocol.durable import FrameStaged, LedgerMoved
from consecution.protocol.origin import BatchBorn, BatchDecided, BatchRecord, Decision, Head, HeadMoved
from consecution.protocol.values import Frame, FrameId, Stage, TaskIndex
from consecution.runtime.journal_check import check_state_dir
from consecution.runtime.state import open_state_dir

DEADLINE_S = 60.0
COUNT = 40
BATCH = 10
SOURCE = TaskIndex(0)


class Moody(Node):
    """Makes pairs; dies, or raises, at one item."""

    def __init__(self, name: str, dies_at: int, raises_at: int) -> None:
        super().__init__(name)
        self.dies_at = dies_at
        self.raises_at = raises_at

    def process(self, item: int) -> None:
        if item == self.raises_at:
            raise ValueError(item)
        if item == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.push({"n": item, "pair": (item, item)} if item % 2 else item)


class Mortal(KeyedNode):
    """Dies when it is to apply one item."""

    def __init__(self, name: str, dies_at: int) -> None:
        super().__init__(name)
        self.dies_at = dies_at

    def key(self, item: Any) -> int:
        return item if isinstance(item, int) else item["n"]

    def process(self, item: Any) -> None:
        if self.key(item) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(state_dir: Path, dies_at: int, raises_at: int, applies_until: int, shares: int) -> None:
    producer = Producer(range(COUNT)) * shares if shares > 1 else Producer(range(COUNT))
    mortal: Any = Mortal("mortal", applies_until)
    if applies_until >= 0:
        mortal = [mortal, Mortal("beside", -1)]  # which have to agree: a batch is staged, then decided
    pipeline = Pipeline(producer | Moody("moody", dies_at, raises_at) | mortal, global_state=None)
    pipeline.run(mode="inline", state_dir=state_dir, batch_size=BATCH, max_pending=2, retry_delay_s=30, sync="process")


def left_by(state_dir: Path, dies_at: int = -1, raises_at: int = -1, applies_until: int = -1, shares: int = 1) -> Path:
    numbers = [str(number) for number in (dies_at, raises_at, applies_until, shares)]
    died = subprocess.run(
        [sys.executable, "-m", "tests.cli.test_pending", str(state_dir), *numbers], timeout=DEADLINE_S
    )
    assert died.returncode == -signal.SIGKILL
    return state_dir


def told(capsys: pytest.CaptureFixture[str], *words: Any) -> list[Any]:
    assert main([str(word) for word in words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def plan_of_mortal() -> Plan:
    return make_plan(Pipeline(Producer(range(3)) | Mortal("mortal", -1)).top_node, Options())


def staged(seq: int, generation: int, frame_id: int, *, whole: bool = False) -> Frame:
    """A frame of the source, of one item, as it lies in an inbox."""
    payload = pickle.dumps([[seq, generation]])
    return Frame(SOURCE, seq, generation, (), FrameId(frame_id), 0, SOURCE, Stage.PROCESS, False, payload, whole=whole)


def test_what_is_open_is_told_as_it_was_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_dir = left_by(tmp_path / "state", dies_at=25)

    batches = told(capsys, "journal", "list", state_dir, "--json")
    items = [line for line in told(capsys, "journal", "replay", state_dir) if line["state"] == "open"]

    opened = [batch for batch in batches if batch["state"] == "open"]
    assert {(batch["origin"], batch["node"]) for batch in opened} == {("producer", "producer")}
    assert sum(batch["items"] for batch in opened) == len(items)
    first = items[0]["item"]
    assert [line["item"] for line in items] == list(range(first, first + len(items)))
    assert first <= 25 < first + len(items)


def test_what_is_decided_is_told_as_it_lies_at_its_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_dir = left_by(tmp_path / "state", applies_until=5)

    lines = told(capsys, "journal", "replay", state_dir, "--node", "mortal")

    assert {(line["origin"], line["state"]) for line in lines} == {("producer", "decided")}
    values = [pickle.loads(base64.b64decode(line["pickle"]))[0] if "pickle" in line else line["item"] for line in lines]
    assert {"n": 5, "pair": (5, 5)} in values
    assert 4 in values
    assert all(line["shown"].startswith("{'n': ") for line in lines if "pickle" in line)
    assert main(["journal", "list", str(state_dir)]) == 0
    assert "is decided, and lies at mortal" in capsys.readouterr().out


def test_a_try_that_is_due_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_dir = left_by(tmp_path / "state", raises_at=3, dies_at=39)

    lines = [line for line in told(capsys, "journal", "replay", state_dir) if line["state"] == "retry"]

    assert [(line["node"], line["item"]) for line in lines] == [("moody", 3)]


class Forgetful(KeyedNode):
    """Remembers an item, and pushes it."""

    def key(self, item: Any) -> Any:
        return item

    def process(self, item: Any) -> None:
        self.push(item)


def test_what_a_durable_node_has_pushed_enters_behind_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has been through that node, and does not come to it again."""
    state_dir = tmp_path / "state"
    chain = Producer(range(COUNT)) | Forgetful("first") | Moody("moody", dies_at=-1, raises_at=3)
    made = open_state_dir(state_dir, make_plan(chain, Options(mode="inline", state_dir=state_dir)), fresh=False)
    payload = pickle.dumps([1, 2])
    with closing(made), closing(made.journal("first.0")) as journal:
        born = [BatchBorn(BatchRecord(1, 2, payload)), HeadMoved(Head(next_seq=2, emitted=2))]
        journal.apply(born)

    (batch,) = told(capsys, "journal", "list", state_dir, "--json")
    assert main(["journal", "list", str(state_dir)]) == 0

    assert (batch["node"], batch["behind"]) == ("first", True)
    assert capsys.readouterr().out == "first.0 1: 2 items, runs again from behind first\n"
    assert [line["behind"] for line in told(capsys, "journal", "replay", state_dir)] == [True, True]


def test_nothing_is_missing_and_nothing_is_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_dir = left_by(tmp_path / "state", dies_at=25)
    before = check_state_dir(state_dir)

    lines = told(capsys, "journal", "replay", state_dir)
    assert main(["journal", "replay", str(state_dir), "--to", str(tmp_path / "pending.jsonl")]) == 0

    assert capsys.readouterr().out == f"{len(lines)} items written to {tmp_path / 'pending.jsonl'}\n"
    assert [json.loads(line) for line in (tmp_path / "pending.jsonl").read_text().splitlines()] == lines
    assert check_state_dir(state_dir) == before
    assert main(["journal", "replay", str(state_dir), "--to", str(tmp_path / "pending.jsonl")]) == 2
    assert "give the name of a new file" in capsys.readouterr().err


def test_what_a_durable_task_has_decided_is_told_as_it_lies_there_and_what_it_has_applied_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its origin does not know yet of either."""
    state = open_state_dir(tmp_path / "state", plan_of_mortal(), fresh=False)
    born = [BatchBorn(BatchRecord(seq, 1, pickle.dumps([seq]))) for seq in range(4)]
    with closing(state.journal("producer")) as journal:
        journal.apply([*born, HeadMoved(Head(next_seq=4, emitted=4, generation=1))])
    with closing(state.journal("mortal.0")) as journal:
        journal.apply(
            [LedgerMoved(SOURCE, 0), FrameStaged(staged(1, 1, 11, whole=True)), FrameStaged(staged(3, 1, 12))]
        )
    state.close()

    lines = told(capsys, "journal", "replay", tmp_path / "state")

    assert [(line["batch"], line["state"], line["node"], line["item"]) for line in lines] == [
        (1, "decided", "mortal", [1, 1]),
        (2, "open", "producer", 2),
        (3, "open", "producer", 3),
    ]


def test_of_what_is_staged_only_the_decided_execution_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frames of an execution that was thrown away, and of a batch that is not decided, lie beside it."""
    plan = plan_of_mortal()
    mortal = TaskIndex(plan.node("mortal").tasks[0])
    state = open_state_dir(tmp_path / "state", plan, fresh=False)
    born = [BatchBorn(BatchRecord(seq, 1, pickle.dumps([seq]))) for seq in range(2)]
    decided = BatchDecided(0, Decision(0, 1, 1, ((mortal, 12),)))
    with closing(state.journal("producer")) as journal:
        journal.apply([*born, decided, HeadMoved(Head(next_seq=2, emitted=2, generation=1))])
    with closing(state.journal("mortal.0")) as journal:
        for seq, generation, frame_id in ((0, 0, 11), (0, 1, 12), (0, 2, 13), (1, 1, 14)):
            journal.apply([FrameStaged(staged(seq, generation, frame_id))])
    state.close()

    lines = told(capsys, "journal", "replay", tmp_path / "state")

    assert [(line["state"], line["node"], line["item"]) for line in lines] == [
        ("decided", "mortal", [0, 1]),
        ("open", "producer", 1),
    ]


def test_only_items_can_go_into_another_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_dir = left_by(tmp_path / "state", applies_until=5)

    assert main(["journal", "replay", str(state_dir), "--items", "--node", "mortal"]) == 1

    caught = capsys.readouterr()
    assert {json.loads(line) % 2 for line in caught.out.splitlines()} == {0}
    assert "items are left out, for JSON cannot hold them" in caught.err


def test_where_nothing_is_pending_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Pipeline(Producer(range(3)) | Moody("moody", -1, -1)).run(mode="inline", state_dir=tmp_path / "state")

    assert main(["journal", "list", str(tmp_path / "state")]) == 0
    assert capsys.readouterr().out == "nothing is pending\n"
    assert told(capsys, "journal", "replay", tmp_path / "state") == []


def test_a_node_that_is_not_there_is_refused_and_the_others_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir = left_by(tmp_path / "state", dies_at=25)
    pending, target = told(capsys, "journal", "replay", state_dir, "--node", "producer"), tmp_path / "pending.jsonl"
    assert pending

    for words in (["--node", "prodcer"], ["--node", "producer", "--node", "prodcer", "--to", str(target)]):
        assert main(["journal", "replay", str(state_dir), *words]) == 2
        assert capsys.readouterr() == (
            "",
            f"consecution: {state_dir}: there is no node 'prodcer'; there are moody, mortal, producer\n",
        )
    assert not target.exists()


def test_what_a_source_has_taken_in_shares_enters_behind_that_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir = left_by(tmp_path / "state", dies_at=25, shares=2)

    batches = [batch for batch in told(capsys, "journal", "list", state_dir, "--json") if batch["state"] == "open"]
    items = told(capsys, "journal", "replay", state_dir, "--node", "producer")

    assert {(batch["node"], batch["behind"]) for batch in batches} == {("producer", True)}
    assert {batch["origin"] for batch in batches} <= {"producer.0", "producer.1"}
    assert len(items) == sum(batch["items"] for batch in batches) > 0


if __name__ == "__main__":
    run(Path(sys.argv[1]), *map(int, sys.argv[2:]))
