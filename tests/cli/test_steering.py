"""status, pause, resume, stop and drain, as a user types them, on real runs."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Producer
from consecution.cli import main, pause
from consecution.cli.rates import NodeRates
from consecution.cli.top import HEADS, _drawn, _shower
from consecution.runtime.outside import Outside, Sight
from tests.conftest import WriteModule

LONGEST_WAIT_S = 60.0
ENDLESS = """
import itertools, time
from consecution import Pipeline, Producer, TextLines

def numbers():
    for number in itertools.count():
        yield number
        time.sleep(0.002)

pipeline = Pipeline(Producer(numbers) | TextLines("out", path="out.txt"))
"""
SLOW = """
import time
from consecution import Pipeline, Producer

def slow(number):
    time.sleep(0.05)
    return number

pipeline = Pipeline(Producer(range(100_000)) | slow)
"""


class Runs:
    """Runs in processes of their own, over the state directory "state", and commands on it."""

    def __init__(self, write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> None:
        self._write_module = write_module
        self._capsys = capsys
        self.started: list[subprocess.Popen[str]] = []

    def start(self, text: str, *flags: str) -> subprocess.Popen[str]:
        self._write_module("etl", text)
        run = [sys.executable, "-m", "consecution", "run", "etl.py", "--state-dir", "state", "--quiet", *flags]
        with open("log", "a") as log:
            process = subprocess.Popen(run, stdout=log, stderr=log, text=True)
        self.started.append(process)
        return process

    def command(self, *words: str) -> tuple[int, str]:
        self._capsys.readouterr()
        code = main([words[0], "state", *words[1:]])
        printed = self._capsys.readouterr()
        assert code != 2, printed.err
        return code, printed.out

    def look(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.command("status", "--json")[1])
        return told

    def await_items(self, more_than: int = 0) -> dict[str, Any]:
        """Until the run has completed so many."""
        return self.wait_for(lambda: (told := self.look())["completed"] > more_than and told)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        deadline_s = time.monotonic() + LONGEST_WAIT_S
        while not (Path("state/manifest.json").exists() and (found := condition())):
            assert time.monotonic() < deadline_s, Path("log").read_text()
            time.sleep(0.02)
        return found


@pytest.fixture
def runs(write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> Iterator[Runs]:
    made = Runs(write_module, capsys)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def test_a_run_is_watched_paused_resumed_and_drained(runs: Runs) -> None:
    process = runs.start(ENDLESS)
    told = runs.await_items()
    assert (told["running"], told["state"], told["pid"]) == (True, "running", process.pid)
    assert [node["node"] for node in told["nodes"]] == ["producer", "out"]

    assert runs.command("pause", "--wait") == (0, "paused; 0 items are pending\n")
    paused = runs.look()
    assert (paused["state"], paused["open"]) == ("paused", 0)
    time.sleep(0.3)  # of which nothing is asked but that it may be long enough to read something
    assert runs.look()["emitted"] == paused["emitted"]

    assert runs.command("resume")[0] == 0
    runs.await_items(more_than=paused["completed"])
    code, said = runs.command("drain")

    assert code == 0, said
    assert process.wait(LONGEST_WAIT_S) == 0
    over = runs.look()
    assert (over["running"], over["state"], over["open"]) == (False, "stopped", 0)
    assert len(Path("out.txt").read_text().split()) == over["completed"]
    assert runs.command("status")[0] == 3
    assert runs.command("drain")[0] == 0


def test_after_kill_9_it_is_not_running_and_a_pause_is_kept(runs: Runs) -> None:
    first = runs.start(ENDLESS, "--mode", "thread")
    runs.await_items()
    runs.command("pause")
    first.send_signal(signal.SIGKILL)
    first.wait()

    assert Path("state/control.sock").exists()
    told = runs.look()
    assert (told["running"], told["state"], told["pid"]) == (False, "killed", first.pid)
    assert told["paused"]
    assert "\n  paused: the next run reads nothing until `consecution resume state`\n" in runs.command("status")[1]
    assert told["ended"] >= told["started"]

    second = runs.start(ENDLESS, "--mode", "thread")
    told = runs.wait_for(lambda: (found := runs.look())["pid"] == second.pid and found)
    assert told["state"] in ("paused", "pausing")
    assert "nothing is read until `consecution resume" in Path("log").read_text()
    assert runs.command("resume")[0] == 0
    assert not runs.await_items(more_than=told["completed"])["paused"]
    assert runs.command("stop")[0] == 0
    assert "paused" not in runs.command("status")[1]
    assert second.wait(LONGEST_WAIT_S) == 0


def test_a_stop_whose_time_is_over_leaves_the_rest_to_the_next_run(runs: Runs) -> None:
    process = runs.start(SLOW, "--batch-size", "10")
    runs.wait_for(lambda: runs.look()["pending"] > 0)

    code, said = runs.command("stop", "--timeout", "0.1")

    assert code == 3, said
    assert said.startswith("stopped; ")
    assert process.wait(LONGEST_WAIT_S) == 3
    assert runs.look()["pending"] > 0
    assert runs.command("stop")[0] == 3


def test_as_commands_in_a_shell_they_answer_in_json(runs: Runs) -> None:
    """The one test whose commands are processes, too."""
    process = runs.start(ENDLESS, "--mode", "thread")
    runs.await_items()

    def typed(*words: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "consecution", words[0], "state", "--json", *words[1:]],
            capture_output=True,
            text=True,
            timeout=LONGEST_WAIT_S,
        )
        assert not done.stderr
        return done.returncode, json.loads(done.stdout)

    code, told = typed("status")
    assert (code, told["state"], told["pid"]) == (0, "running", process.pid)
    code, told = typed("stop")
    assert (code, told["running"], told["state"], told["error"]) == (0, False, "stopped", None)


def run_here(capsys: pytest.CaptureFixture[str]) -> None:
    Pipeline(Producer([1, 2, 3]) | str).run(mode="inline", state_dir="state", sync="process")
    capsys.readouterr()


def test_of_a_run_that_has_finished_status_says_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(capsys)

    assert main(["status", "state"]) == 3
    said = capsys.readouterr().out
    assert said.startswith("state: not running; finished at 2")
    assert "emitted 3 = completed 3 + pending 0" in said
    assert said.endswith("Nothing is pending.\n")


def test_of_a_restored_state_directory_status_does_not_say_that_no_run_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(capsys)
    assert main(["backup", "state", "backup"]) == 0
    assert main(["restore", "backup", "restored"]) == 0
    capsys.readouterr()

    assert main(["status", "restored"]) == 3
    said = capsys.readouterr().out
    assert said.startswith("restored: not running; when a run was here is not known, as after a restore: ")
    assert "emitted 3 = completed 3 + pending 0" in said
    assert main(["status", "restored", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == "unknown"


class Looks:
    """A run that is paused at once, and of which each look shows the next of these counts; the last one for good."""

    path = "state"

    def __init__(self, *shown: tuple[int, int]) -> None:
        self._shown = list(shown)
        self.looks = 0

    def ask(self, command: str, **more: Any) -> None:
        assert command == "pause"

    def see(self) -> Sight:
        open_below, frames = self._shown[min(self.looks, len(self._shown) - 1)]
        self.looks += 1
        tasks = [{"items_in": frames, "items_out": frames, "frames": frames}]
        return Sight("state", True, "paused", {"pending": 0, "pending_below": open_below, "tasks": tasks}, 7)


@pytest.mark.parametrize("shown", [[(0, 1), (0, 1), (5, 1)], [(0, 1), (0, 1), (0, 2)]], ids=["open", "moved"])
def test_a_pause_waits_for_what_workers_have_not_told_of_yet(
    shown: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = Looks(*shown, (0, 7))
    monkeypatch.setattr(pause, "Outside", lambda path: looks)
    monkeypatch.setattr(pause, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(pause, "SURE_S", 0.2)

    assert main(["pause", "state", "--wait"]) == 0

    assert looks.looks > len(shown) + 1
    assert capsys.readouterr().out == "paused; 0 items are pending\n"


def test_a_pause_that_is_never_quiet_is_not_yet_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pause, "Outside", lambda path: Looks((5, 1)))

    assert main(["pause", "state", "--wait", "--timeout", "0.3"]) == 1

    assert capsys.readouterr().out == "not yet: the run is paused; 5 items are pending\n"


def test_where_no_run_goes_on_the_next_one_is_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(capsys)

    assert main(["pause", "state"]) == 0
    assert Path("state/paused").exists()
    assert main(["resume", "state"]) == 0
    assert not Path("state/paused").exists()
    assert main(["pause", "state", "--for", "5"]) == 2
    assert "there is nothing that --for could pause" in capsys.readouterr().err


def test_a_pause_of_no_length_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("0", "0.0"):
        with pytest.raises(SystemExit) as ended:
            main(["pause", "state", "--for", text])
        assert ended.value.code == 2
        assert f"argument --for: '{text}': expected seconds, more than 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "stop", "drain", "pause", "resume"])
def test_what_is_no_state_directory_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "is not a state directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "status state",
        "stop state",
        "drain state",
        "pause state",
        "resume state",
        "top state",
        "logs state",
        "journal check state",
        "journal list state",
        "journal replay state",
        "state list state",
        "state get state node",
        "state export state",
        "failed list state",
        "failed show state",
        "failed export state",
        "failed retry state",
        "failed drop state --all",
        "backup state copy",
        "plan etl.py --state-dir state",
        "run etl.py --state-dir state",
    ],
)
def test_the_directory_of_another_user_is_refused(
    words: str, write_module: WriteModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_module("etl", SLOW)
    run_here(capsys)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)

    assert main(words.split()) == 2
    assert f"belongs to user {me}, this process runs as {me + 1}: run as its owner" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs", "journal check", "journal list", "failed list", "backup"])
@pytest.mark.parametrize("in_sight", [True, False])
def test_where_the_system_lets_nobody_else_look_the_owner_is_named(
    command: str,
    in_sight: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(capsys)
    me, real = os.getuid(), os.stat

    def deny(path: Any, *arguments: Any, **words: Any) -> Any:
        if str(path).startswith("state/" if in_sight else "state"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **words)

    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    monkeypatch.setattr(os, "stat", deny)
    monkeypatch.setattr(Path, "read_bytes", deny)

    assert main([*command.split(), "state", *(["copy"] if command == "backup" else [])]) == 2
    said = capsys.readouterr().err
    if in_sight:
        assert f"state belongs to user {me}, this process runs as {me + 1}: run as its owner" in said
    else:
        assert "the state directory state cannot be looked at: Permission denied (state" in said
        assert "; run as its owner, or use another directory\n" in said
    assert "Traceback" not in said


def test_a_state_directory_is_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("state").mkdir(mode=0o755)
    run_here(capsys)

    assert stat.S_IMODE(os.stat("state").st_mode) == 0o700
    files = [path for path in Path("state").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


# -- top -------------------------------------------------------------------------------------------


def test_top_names_the_node_that_holds_the_flow_back(runs: Runs) -> None:
    runs.start(SLOW)
    runs.wait_for(lambda: runs.look()["pending"] > 0)

    code, printed = runs.command("top", "--once", "--json", "--interval", "0.5")

    told = json.loads(printed)
    assert (code, told["state"]) == (0, "running")
    slow = {node["node"]: node for node in told["nodes"]}["slow"]
    assert slow["busy"] > 0.5
    said = r"slow: its busiest task spends \d+% of its time at its own work"
    assert re.fullmatch(said, told["holds_back"])
    code, printed = runs.command("top", "--once", "--interval", "0.5")
    lines = printed.splitlines()
    assert lines[2].split() == list(HEADS)
    assert [line.split()[0] for line in lines[3:5]] == ["producer", "slow"]
    assert re.fullmatch(f"holds the flow back: {said}", lines[-2])
    assert runs.command("stop", "--now")[0] == 3
    assert runs.command("top")[0] == 3


def test_top_goes_on_until_the_run_ends(runs: Runs) -> None:
    runs.start(ENDLESS, "--mode", "thread")
    runs.await_items()
    looking = subprocess.Popen(
        [sys.executable, "-m", "consecution", "top", "state", "--interval", "0.1"], stdout=subprocess.PIPE, text=True
    )
    assert looking.stdout is not None
    for line in looking.stdout:
        if line.startswith("holds the flow back"):
            break

    runs.command("drain")

    printed = looking.communicate(timeout=LONGEST_WAIT_S)[0]
    assert looking.returncode == 0
    assert printed.endswith("the run has ended: stopped\n")


def test_top_compares_only_looks_at_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(started_s: float, seconds: float, items_in: int) -> Sight:
        counts = {"items_in": items_in, "items_out": 0, "failed": 0, "frames": 0, "waiting": 0}
        task = {"task": "a.0", "node": "a", **counts, "busy_s": 0.0, "commit_s": 0.0, "waited_s": 0.0}
        told = {"seconds": seconds, "pending": 0, "pending_below": 0, "completed": 0, "tasks": [task], "sources": []}
        return Sight(str(tmp_path), True, "running", told, 7, started_s=started_s)

    starting = Sight(str(tmp_path), True, "busy", {"pending": 0, "pending_below": 0}, 7)
    over = Sight(str(tmp_path), False, "stopped", {"pending": 0, "pending_below": 0}, 7)
    looks = iter([starting, look(100.0, 1.0, 10), look(200.0, 2.0, 500), look(200.0, 3.0, 520), over])
    monkeypatch.setattr(Outside, "__init__", lambda self, path: None)
    monkeypatch.setattr(Outside, "see", lambda self: next(looks))

    code = main(["top", str(tmp_path), "--json", "--interval", "0"])

    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert [json.loads(line)["nodes"][0]["in_per_s"] for line in printed.out.splitlines()] == [20.0]


def test_on_a_terminal_top_is_drawn_with_rich() -> None:
    from rich.console import Console

    console = Console(width=120, file=io.StringIO(), color_system=None)
    counts = {"seconds": 3.0, "completed": 5, "pending": 1, "pending_below": 0, "failed": 0, "restarts": 0}
    sight = Sight("state", True, "running", counts, 7)
    rates = [NodeRates("[odd] name", 2, False, 1234.0, 10.0, 0.0, 0.5, 0.25, 3.0, 0.012)]

    console.print(_drawn(sight, rates))

    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "state: running for 3 s, process 7; 5 completed, 1 pending" in printed
    assert next(line.split() for line in printed.splitlines() if "odd" in line) == [
        "[odd]",
        "name",
        "2",
        "1,234",
        "10",
        "50%",
        "25%",
        "3.0",
        "12.0",
        "ms",
    ]


def test_on_a_dumb_terminal_top_prints_look_after_look(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "dumb")
    counts = {"seconds": 3.0, "completed": 5, "pending": 1, "pending_below": 0, "failed": 0, "restarts": 0}

    with ExitStack() as stack:
        show = _shower(argparse.Namespace(json=False, once=False), stack)
        show(Sight("state", True, "running", counts, 7), [])

    assert terminal.getvalue().startswith("state: running for 3 s, process 7; 5 completed, 1 pending")


def test_what_is_left_of_a_run_over_files_can_be_looked_at(runs: Runs) -> None:
    """Such a source keeps notes beside its batches."""
    Path("names.txt").write_text("ada\ngrace\n")
    Pipeline(Producer("files", "names.txt") | str.title).run(mode="inline", state_dir="state")

    told = runs.look()

    assert (told["state"], told["completed"], told["open"]) == ("finished", 2, 0)
    assert main(["failed", "list", "state"]) == 0
