"""The commands of docs/upgrading.md, in their order, over a real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from consecution.cli import main
from consecution.cli.target import load_target
from tests.conftest import WriteModule
from tests.examples.programs import DEADLINE_S, call, command

ITEMS = 1500
OLD = f"""
import os
import time
from consecution import JsonLines, KeyedNode, Pipeline, Producer

SLOW_S = float(os.environ.get("SLOW_S", "0"))

class Balance(KeyedNode):
    def key(self, item):
        return item % 7

    def process(self, item):
        time.sleep(SLOW_S)
        self.state["sum"] = self.state.get("sum", 0) + item

    def end(self):
        for key, state in self.states():
            self.push((key, state["sum"]))

def build(replicas):
    return Pipeline(
        Producer(range({ITEMS}), name="numbers")
        | [Balance("balance") * replicas | JsonLines("sums", "sums.jsonl"), JsonLines("audit", "audit.jsonl")]
    )

pipeline = build(2)
"""
NEW = "import old\npipeline = old.build(3)\n"
RUN = ("--state-dir", "state", "--batch-size", "10", "--max-pending", "4", "--sync", "process", "--quiet")


def done_of(folder: Path) -> int:
    """How many items are completely processed, while a run goes on; 0 before that."""
    told = call(command("status", "state", "--json"), folder)
    return int(json.loads(told.stdout).get("completed", 0)) if told.returncode == 0 else 0


def values_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_all_is_there_once(folder: Path) -> None:
    sums: Counter[int] = Counter()
    for number in range(ITEMS):
        sums[number % 7] += number
    assert values_of(folder / "audit.jsonl") == list(range(ITEMS))
    assert sorted(values_of(folder / "sums.jsonl")) == sorted([key, total] for key, total in sums.items())


def do(folder: Path, *words: str) -> str:
    told = call(command(*words), folder)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def test_the_way_to_a_new_program_and_back(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(OLD)
    (tmp_path / "new.py").write_text(NEW)
    slowly = {**os.environ, "SLOW_S": "0.02"}
    old = subprocess.Popen(command("run", "old.py", *RUN), cwd=tmp_path, env=slowly, stdout=subprocess.DEVNULL)
    try:
        give_up_s = time.monotonic() + DEADLINE_S
        while not done_of(tmp_path):
            assert old.poll() is None
            assert time.monotonic() < give_up_s
        do(tmp_path, "backup", "state", "before")
        do(tmp_path, "drain", "state")
        assert old.wait(DEADLINE_S) == 0
    finally:
        old.kill()
        old.wait(DEADLINE_S)

    told = do(tmp_path, "plan", "new.py", "--state-dir", "state")
    do(tmp_path, "run", "new.py", *RUN)

    assert "balance: its state moves from 2 to 3 replicas" in told
    check_all_is_there_once(tmp_path)

    do(tmp_path, "stop", "state")
    (tmp_path / "state").rename(tmp_path / "state-of-the-new-program")
    do(tmp_path, "restore", "before", "state")
    do(tmp_path, "run", "old.py", *RUN)

    check_all_is_there_once(tmp_path)


# -- what `plan` foresees ----------------------------------------------------------------------------

FIRST = """
from consecution import KeyedNode, Map, Pipeline, Producer

class Total(KeyedNode):
    def key(self, item):
        return item

    def process(self, item):
        self.state["count"] = self.state.get("count", 0) + 1

def build(*nodes, source="numbers"):
    top = Producer("manual", name=source)
    for node in nodes:
        top = top | node
    return Pipeline(top)

pipeline = build(Total("total") * 2)
"""
OTHERS = {
    "the same": ("build(Total('total') * 2)", ["the graph is the same: it would go on where it was"]),
    "a node before": ("build(Map(str, name='text'), Total('total') * 2)", ["the graph has changed"]),
    "another": (
        "build(Total('total') * 2, Total('more'))",
        ["it would go on where it was", "more would begin with nothing"],
    ),
    "replicas": ("build(Total('total') * 3)", ["total: its state moves from 2 to 3 replicas"]),
}
REFUSED = {
    "renamed": ("build(Total('sum') * 2)", "the state of 'total.0'"),
    "another source": ("build(Total('total') * 2, source='digits')", "how far the source 'numbers' was read (5 items)"),
}


@pytest.fixture
def stopped(tmp_path: Path, write_module: WriteModule) -> Path:
    """The state directory of a run that has counted five numbers and was stopped."""
    running = load_target(str(write_module("first_program", FIRST))).start(
        mode="inline", state_dir=tmp_path / "state", sync="process"
    )
    for number in range(5):
        running.push(number).wait(DEADLINE_S)
    running.stop()
    return tmp_path / "state"


def plan_of(write_module: WriteModule, what: str, state: Path, *flags: str) -> int:
    target = write_module("next_program", f"from first_program import *\npipeline = {what}\n")
    return main(["plan", str(target), "--state-dir", str(state), "--mode", "inline", *flags])


def content_of(state: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(state.rglob("*.json"))}


@pytest.mark.parametrize(("what", "words"), OTHERS.values(), ids=OTHERS)
def test_plan_says_what_a_run_would_do(
    stopped: Path, write_module: WriteModule, what: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = content_of(stopped)

    assert plan_of(write_module, what, stopped) == 0

    told = capsys.readouterr().out
    assert [word for word in words if word not in told] == []
    assert content_of(stopped) == before


@pytest.mark.parametrize(("what", "words"), REFUSED.values(), ids=REFUSED)
def test_plan_says_what_would_be_refused_and_what_would_be_dropped(
    stopped: Path, write_module: WriteModule, what: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_of(write_module, what, stopped) == 2
    assert words in capsys.readouterr().err

    assert plan_of(write_module, what, stopped, "--drop-state") == 0
    assert f"dropped for good: {words}" in capsys.readouterr().out


def test_plan_over_no_state_a_finished_one_and_one_in_use(
    tmp_path: Path, stopped: Path, write_module: WriteModule, capsys: pytest.CaptureFixture[str]
) -> None:
    same = OTHERS["the same"][0]
    assert plan_of(write_module, same, tmp_path / "none") == 0
    assert "there is nothing yet: it would begin" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()

    assert plan_of(write_module, same, stopped, "--fresh") == 0
    assert "it would be forgotten" in capsys.readouterr().out

    running = load_target("first_program:pipeline").start(mode="inline", state_dir=stopped, sync="process")
    try:
        assert plan_of(write_module, same, stopped) == 2
        assert "is in use by another run" in capsys.readouterr().err
        assert plan_of(write_module, same, stopped, "--fresh") == 2
        assert "is in use by another run" in capsys.readouterr().err
    finally:
        running.finish_input()
        running.wait(DEADLINE_S)
    assert plan_of(write_module, same, stopped) == 0
    assert "has finished" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--fresh"]], ids=["as it is", "fresh"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("folder", "is not a state directory: expected manifest.json, found notes.txt"),
        ("folder/notes.txt", "cannot be used: Not a directory"),
        ("folder/notes.txt/state", "cannot be used: Not a directory"),
    ],
)
def test_plan_refuses_a_place_that_a_run_would_refuse(
    place: str,
    message: str,
    flags: list[str],
    tmp_path: Path,
    write_module: WriteModule,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    write_module("first_program", FIRST)

    assert plan_of(write_module, OTHERS["the same"][0], tmp_path / place, *flags) == 2

    assert message in capsys.readouterr().err
    assert [*(tmp_path / "folder").iterdir()] == [tmp_path / "folder" / "notes.txt"]


# -- from `python etl.py` to `consecution run etl.py`, and back ------------------------------------------

SCRIPT = """
import sys
from dataclasses import dataclass
from typing import NamedTuple

from consecution import KeyedNode, Pipeline, Producer

@dataclass
class Account:
    cents: int = 0

class Payment(NamedTuple):
    who: str
    cents: int

class Balance(KeyedNode):
    def initial_state(self):
        return Account()

    def key(self, payment):
        return payment.who

    def process(self, payment):
        if not isinstance(payment, Payment) or not isinstance(self.state, Account):
            raise TypeError("two classes of one name")
        if payment.cents < 0:
            raise ValueError("who owes whom?")
        self.state.cents += payment.cents

pipeline = Pipeline(Producer("manual", name="cents") | (lambda cents: Payment("Ada", cents)) | Balance("balance"))

def pay(pipeline, mode, *payments):
    running = pipeline.start(mode=mode, state_dir="state", sync="process", retries=0)
    for cents in payments:
        running.push(int(cents)).wait(60)
    return running.stop()

if __name__ == "__main__":
    pay(pipeline, *sys.argv[1:])
"""


def run_script(folder: Path, mode: str, *payments: str) -> None:
    told = call([sys.executable, "bank.py", mode, *payments], folder)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_what_a_script_has_written_goes_on_under_any_name_of_its_module(
    tmp_path: Path, write_module: WriteModule, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the three calls the same classes otherwise: by ``__mp_main__``, ``bank`` and ``__main__``."""
    path = write_module("bank", SCRIPT)

    run_script(tmp_path, "process", "1", "-1")
    pipeline, pay = load_target(str(path)), sys.modules["bank"].pay
    report = pay(pipeline, mode, 10)
    run_script(tmp_path, "thread", "100")
    again = pay(pipeline, "inline", 1000)

    assert (report.failed, again.failed) == (1, 1), "the one that a node refuses"
    assert main(["state", "get", "state", "balance", "Ada", "--script", "bank.py"]) == 0
    assert capsys.readouterr().out == "Account(cents=1111)\n"


def test_commands_say_how_to_load_what_a_script_has_written(tmp_path: Path, write_module: WriteModule) -> None:
    write_module("bank", SCRIPT)
    run_script(tmp_path, "thread", "7", "-1")

    without = call(command("state", "list", "state"), tmp_path)
    assert without.returncode == 2
    assert "name that file with --script FILE" in without.stderr

    assert "1 replica, 1 states" in do(tmp_path, "state", "list", "state", "--script", "bank.py")
    assert '"shown": ["\'Ada\'", "Account(cents=7)"]' in do(tmp_path, "state", "export", "state", "--script", "bank.py")
    assert "--script FILE" in do(tmp_path, "failed", "show", "state")
    assert "\nitem: Payment(who='Ada', cents=-1)" in do(tmp_path, "failed", "show", "state", "--script", "bank.py")


def test_plan_says_that_a_run_could_not_load_what_it_finds(
    tmp_path: Path, write_module: WriteModule, capsys: pytest.CaptureFixture[str]
) -> None:
    write_module("bank", SCRIPT)
    run_script(tmp_path, "thread", "7")
    same, other = "bank.py", write_module("other", SCRIPT.replace("Account", "Konto"))

    assert main(["plan", same, "--state-dir", "state"]) == 0
    assert "it would go on where it was" in capsys.readouterr().out
    assert main(["plan", str(other), "--state-dir", "state"]) == 2
    told = capsys.readouterr().err
    assert "the state in " in told
    assert "keep its classes under their old names; nothing was lost" in told
