"""What a run obeys: the record it leaves, its pause, its stop."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution.errors import NotRunningError, WorldError
from consecution.options import Options
from consecution.report import Status
from consecution.runtime.control_socket import LONGEST_PATH_BYTES, ask
from consecution.runtime.run_record import holder_of, read_run_record
from consecution.runtime.steering import Steering

LONGEST_WAIT_S = 30.0


class FakeRun:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def status(self) -> Status:
        return Status("running", 5, 3, 0, 2, 0, 0, 1.0, ())

    def request_stop(self) -> None:
        self.told.append("stop")

    def abort(self) -> None:
        self.told.append("abort")

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


class Steered:
    """Runs over one state directory, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self.open: list[Steering] = []

    def start(self, **options: Any) -> tuple[FakeRun, Steering]:
        run = FakeRun()
        steering = Steering(run, self.path, Options.of(**options), self.said.append)
        steering.serve()
        self.open.append(steering)
        return run, steering

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        record = read_run_record(self.path)
        assert record is not None
        assert record.control is not None
        return ask(record.control, {"command": command, **fields}, LONGEST_WAIT_S)


@pytest.fixture
def steered(tmp_path: Path) -> Iterator[Steered]:
    made = Steered(tmp_path)
    yield made
    for steering in made.open:
        steering.end("stopped", None)
    assert [t.name for t in threading.enumerate() if t.name == "consecution-control"] == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LONGEST_WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.005)


def test_it_says_who_runs_and_how_far_it_is(steered: Steered) -> None:
    steered.start(mode="thread")

    answer = steered.ask("status")

    assert (answer["pid"], answer["mode"]) == (os.getpid(), "thread")
    assert (answer["status"]["emitted"], answer["status"]["pending"]) == (5, 2)


def test_an_unknown_command_gets_the_list_of_those_there_are(steered: Steered) -> None:
    steered.start()

    with pytest.raises(WorldError, match="there is no command 'halt'; expected one of status, stop, drain, pause"):
        steered.ask("halt")


@pytest.mark.parametrize("grace", [-1, "soon", True, 1e12, [1]])
def test_seconds_must_be_seconds(steered: Steered, grace: Any) -> None:
    run, _ = steered.start()

    with pytest.raises(WorldError, match="expected seconds, 0 or more"):
        steered.ask("stop", timeout_s=grace)
    assert run.told == []


def test_a_stop_becomes_an_abort_when_its_time_is_over(steered: Steered) -> None:
    run, _ = steered.start(stop_timeout_s=1000)

    assert steered.ask("stop")["grace_s"] == 1000
    assert run.told == ["stop"]
    steered.ask("stop", timeout_s=0.01)

    wait_for(lambda: run.told == ["stop", "stop", "abort"])


def test_a_drain_takes_the_time_limit_of_a_stop_away(steered: Steered) -> None:
    run, steering = steered.start()

    steered.ask("stop", timeout_s=1000)
    steered.ask("drain")

    assert run.told == ["stop", "stop"]
    assert steering._abort_at_s is None


def test_now_aborts_at_once(steered: Steered) -> None:
    run, _ = steered.start()

    assert steered.ask("stop", now=True)["grace_s"] == 0
    assert run.told == ["abort"]


def test_a_pause_outlasts_the_run_until_somebody_resumes(steered: Steered) -> None:
    first, steering = steered.start()
    steered.ask("pause")
    steering.end("stopped", None)

    second, steering = steered.start()
    assert (first.told, second.told) == (["pause"], ["pause"])
    assert steered.said == [f"paused: nothing is read until `consecution resume {steered.path}`"]
    steered.ask("resume")
    steering.end("stopped", None)

    third, _ = steered.start()
    assert (second.told, third.told) == (["pause", "resume"], [])


def test_a_fresh_run_forgets_the_pause(steered: Steered) -> None:
    _, steering = steered.start()
    steered.ask("pause")
    steering.end("stopped", None)

    _, steering = steered.start(fresh=True)
    steering.end("stopped", None)

    assert steered.start()[0].told == []


def test_a_pause_for_a_time_ends_by_itself_and_not_with_the_next_run(steered: Steered) -> None:
    run, steering = steered.start()
    steered.ask("pause", for_s=0.01)
    wait_for(lambda: run.told == ["pause", "resume"])
    steered.ask("pause", for_s=1000)
    steering.end("stopped", None)

    assert steered.start()[0].told == []


def test_a_pause_for_a_time_does_not_end_one_without(steered: Steered) -> None:
    _, steering = steered.start()
    steered.ask("pause")
    steered.ask("pause", for_s=0.0)

    assert steering._resume_at_s is None
    steering.end("stopped", None)
    assert steered.start()[0].told == ["pause"]


def test_the_record_says_how_the_run_has_ended(steered: Steered) -> None:
    run, steering = steered.start()

    steering.end("failed", run.status(), WorldError("the disk is full"))

    record = read_run_record(steered.path)
    assert record is not None
    assert (record.outcome, record.error, record.control) == ("failed", "WorldError: the disk is full", None)
    assert record.status is not None
    assert record.status["completed"] == 3
    assert record.ended_s is not None
    assert record.ended_s >= record.started_s


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"pid": 1}', '{"pid": 1, "started_s": 2, "mode": "x", "more": 3}'):
        (tmp_path / "run.json").write_text(content)
        assert read_run_record(tmp_path) is None


def test_its_files_are_for_their_owner_only(steered: Steered) -> None:
    steered.start()
    steered.ask("pause")

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in steered.path.iterdir()}
    assert modes == {"run.json": 0o600, "control.sock": 0o600, "paused": 0o600}


def test_where_the_path_is_too_long_it_listens_in_a_folder_with_a_short_one(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    made = Steered(deep)

    _, steering = made.start()

    record = read_run_record(deep)
    assert record is not None
    assert record.control is not None
    assert len(os.fsencode(record.control)) <= LONGEST_PATH_BYTES
    folder = os.path.dirname(record.control)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert made.ask("status")["ok"]
    steering.end("stopped", None)
    assert not os.path.exists(folder)
    with pytest.raises(NotRunningError):
        ask(record.control, {"command": "status"})


def test_nobody_holds_a_directory_without_a_lock(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
