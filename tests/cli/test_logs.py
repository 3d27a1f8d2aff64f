"""``consecution logs``, as a user types it, over a run in worker processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from consecution import Pipeline, Producer
from consecution.cli import main
from consecution.runtime.log_file import LogFile, LogLine
from tests.conftest import WriteModule

LONGEST_WAIT_S = 60.0
CONSECUTION = (sys.executable, "-m", "consecution")
CHATTY = """
import os, time
from consecution import Node, Pipeline, Producer

class Loud(Node):
    def process(self, item):
        print(f"got {item}")
        os.write(2, b"by the descriptor\\n")
        self.push(item)

class Quiet(Node):
    def begin(self):
        print("begun")

    def process(self, item):
        self.push(item)

pipeline = Pipeline(Producer(range(5)) | Loud("loud") | Quiet("quiet"))
"""


def test_the_log_of_a_run_is_kept_and_found_by_node(
    write_module: WriteModule, capfd: pytest.CaptureFixture[str]
) -> None:
    write_module("chatty", CHATTY)
    done = subprocess.run(
        [*CONSECUTION, "run", "chatty.py", "--state-dir", "state", "--quiet", "--log-format", "json"],
        capture_output=True,
        text=True,
        timeout=LONGEST_WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    on_stderr = [json.loads(line) for line in done.stderr.splitlines()]

    def printed(*flags: str) -> list[str]:
        assert main(["logs", "state", *flags]) == 0
        return capfd.readouterr().out.splitlines()

    assert [json.loads(line) for line in printed("--json")] == on_stderr
    loud = [json.loads(line) for line in printed("--json", "--node", "loud")]
    assert {line["task"] for line in loud} == {"loud.0"}
    assert [line["text"] for line in loud if line["text"].startswith("got")] == [f"got {item}" for item in range(5)]
    (begun,) = printed("--node", "quiet.0")
    assert begun.endswith("] begun")
    assert "[quiet.0 " in begun
    assert len(printed("-n", "3")) == 3
    assert printed("--since", "2999-01-01") == []
    assert len(printed("--since", "1h", "--node", "quiet")) == 1
    for silent in ("producer", "supervisor", "worker.0"):
        assert main(["logs", "state", "--node", silent]) == 0
        assert capfd.readouterr() == ("", "no such lines; there are lines of loud.0, quiet.0\n")
    for words in (["--node", "lout"], ["--node", "loud", "--node", "lout"], ["--node", "lout", "--follow"]):
        assert main(["logs", "state", *words]) == 2
        assert capfd.readouterr() == (
            "",
            "consecution: state: there is no node, task or worker 'lout'; there are the nodes loud, producer, quiet, "
            "their tasks (as producer.0), workers (as worker.0) and supervisor\n",
        )


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_of_a_run_that_keeps_none_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Pipeline(Producer([1]) | str).run(mode=mode, state_dir="state", sync="process")
    capsys.readouterr()

    assert main(["logs", "state"]) == 0

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"the latest run over state writes no log: it is in {mode} mode, where your code prints where your program "
        "does; only process mode keeps one (--mode process)\nthe log is empty\n"
    )


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Pipeline(Producer([1]) | str).run(mode="inline", state_dir="state", sync="process")
    return tmp_path / "state"


def test_who_follows_sees_the_latest_lines_and_those_that_come(state: Path) -> None:
    log = LogFile(state)
    log.write([LogLine.now("a.0", 1, f"line {number}") for number in range(5)])
    following = subprocess.Popen(
        [*CONSECUTION, "logs", "state", "-f", "-n", "2", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        seen = [json.loads(following.stdout.readline())["text"] for _ in range(2)]
        log.write([LogLine.now("a.0", 1, "new")])
        seen.append(json.loads(following.stdout.readline())["text"])
    finally:
        log.close()
        following.kill()
        following.communicate()

    assert seen == ["line 3", "line 4", "new"]


def test_the_lines_of_a_node_that_is_no_longer_there_are_found(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = LogFile(state)
    log.write([LogLine.now("old.0", 1, "here I was")])
    log.close()

    for name in ("old", "old.0"):
        assert main(["logs", "state", "--node", name]) == 0
        assert "here I was" in capsys.readouterr().out


def test_a_number_of_lines_is_a_number(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["logs", "state", "-n", "many"])

    assert "expected a whole number" in capsys.readouterr().err


def test_what_is_no_state_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(tmp_path)]) == 2
    assert "is not a state directory" in capsys.readouterr().err
