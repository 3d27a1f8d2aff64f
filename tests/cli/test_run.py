from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Report
from consecution.cli import main
from consecution.options import SETTINGS
from tests.conftest import WriteModule
from tests.test_report import report

NUMBERS = """
from consecution import Pipeline, Producer

def halve(number):
    return 12 // number

pipeline = Pipeline(Producer(range({first}, 5)) | halve)
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs nothing: notes the options a run was asked for, and reports work pending."""
    seen: dict[str, Any] = {}

    def run(self: Pipeline, iterable: Any = None, **options: Any) -> Report:
        seen.update(options)
        return report(completed=4, pending=6, stopped=True)

    monkeypatch.setattr(Pipeline, "run", run)
    return seen


def test_all_completed_exits_0_and_prints_the_report(
    write_module: WriteModule, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_module("run_good", NUMBERS.format(first=1))

    code = main(["run", str(path), "--mode", "inline"])

    assert code == 0
    assert "emitted 4 = completed 4 + pending 0" in capsys.readouterr().out


def test_a_run_that_an_item_has_stopped_exits_1_and_says_which(
    write_module: WriteModule, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_module("run_stopped", NUMBERS.format(first=0))

    code = main(["run", str(path), "--mode", "inline", "--on-error", "stop"])

    printed = capsys.readouterr()
    assert code == 1
    assert "failed 1" in printed.out
    assert "node 'halve' stopped the run at the item 0: ZeroDivisionError" in printed.err


def test_some_failed_exits_1_and_lists_them(write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_module("run_bad", NUMBERS.format(first=0))

    code = main(["run", str(path), "--mode", "inline", "--retries", "0"])

    assert code == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_the_next_step_after_failed_items_is_a_command(
    write_module: WriteModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, state = write_module("run_kept", NUMBERS.format(first=0)), tmp_path / "state"

    main(["run", str(path), "--mode", "inline", "--retries", "0", "--state-dir", str(state)])

    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"`consecution failed list {shlex.quote(str(state))}` lists the failed items;")


@pytest.mark.parametrize("error", [RuntimeError("out of the blue"), OSError(28, "No space left on device")])
def test_an_error_of_another_kind_exits_2_with_its_traceback(
    write_module: WriteModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def run(self: Pipeline, **options: Any) -> Report:
        raise error

    monkeypatch.setattr(Pipeline, "run", run)

    assert main(["run", str(write_module("run_blue", NUMBERS.format(first=1)))]) == 2

    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):")
    assert told.endswith(f"{type(error).__name__}: {error}\n")


def test_work_pending_exits_3(write_module: WriteModule, asked: dict[str, Any]) -> None:
    assert main(["run", str(write_module("run_pending", NUMBERS.format(first=1)))]) == 3


def test_flags_become_options_and_the_rest_keeps_its_default(write_module: WriteModule, asked: dict[str, Any]) -> None:
    path = write_module("run_flags", NUMBERS.format(first=1))

    main(["run", str(path), "--timeout-s", "2.5", "--max-pending", "7", "--fresh", "--state-dir", "s", "--quiet"])

    assert asked == {"timeout_s": 2.5, "max_pending": 7, "fresh": True, "state_dir": "s", "progress": False}


def test_every_setting_has_a_flag_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])

    text = capsys.readouterr().out
    assert [setting.flag for setting in SETTINGS if setting.flag not in text] == []
    assert "exit codes" in text


def test_json_is_the_report_and_nothing_else(write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_module("run_json", NUMBERS.format(first=1))

    main(["run", str(path), "--mode", "inline", "--json"])

    assert Report.from_dict(json.loads(capsys.readouterr().out)).completed == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere.py"],
        ["run_usage.py", "--retries", "-1"],
        ["run_usage.py", "--batch-size", "0"],
        ["run_usage.py:nothing"],
        ["run_broken.py"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_usage_errors_exit_2_with_one_message(
    write_module: WriteModule, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    write_module("run_usage", NUMBERS.format(first=1))
    write_module("run_broken", "1 / 0")

    code = main(["run", *arguments])

    assert code == 2
    assert capsys.readouterr().err.startswith("consecution: ")


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "x.py", "--mode", "proces"], ["walk"]])
def test_a_line_that_cannot_be_parsed_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: consecution" in capsys.readouterr().err


def test_a_real_command_line_runs_worker_processes(write_module: WriteModule) -> None:
    path = write_module("run_real", NUMBERS.format(first=1))

    done = subprocess.run(
        [sys.executable, "-m", "consecution", "run", str(path), "--quiet", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    found = Report.from_dict(json.loads(done.stdout))
    assert (found.mode, found.completed, found.confirmed) == ("process", 4, True)


def test_a_broken_pipe_of_the_pipelines_own_is_told(
    write_module: WriteModule, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
from consecution import Pipeline, Producer

class Mine(Pipeline):
    def begin(self):
        raise BrokenPipeError(32, "Broken pipe", "of begin()")

pipeline = Mine(Producer(range(4)) | str)
"""

    code = main(["run", str(write_module("run_broken", text)), "--mode", "inline"])

    assert code == 2
    assert "BrokenPipeError: [Errno 32] Broken pipe: 'of begin()'" in capsys.readouterr().err


def test_what_the_output_cannot_take_is_escaped_and_the_exit_code_is_that_of_the_run(write_module: WriteModule) -> None:
    text = """
from consecution import Map, Pipeline, Producer

def refuse(word):
    raise ValueError(word)

pipeline = Pipeline(Producer(["b\u00e4d"]) | Map(refuse, name="refuse"))
"""
    path = write_module("run_foreign", text)
    flags = ["--mode", "inline", "--state-dir", "state", "--retries", "0", "--quiet"]

    def call(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "consecution", *words]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, text=True, encoding="ascii", env=environment, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    code, printed = call("run", str(path), *flags)
    assert (code, r"ValueError: b\xe4d" in printed) == (1, True)
    code, printed = call("failed", "list", "state")
    assert (code, r"ValueError: b\xe4d" in printed) == (0, True)


def test_a_run_whose_standard_output_is_closed_exits_as_any_other(write_module: WriteModule) -> None:
    path = write_module("run_silent", NUMBERS.format(first=0))
    command = [sys.executable, "-m", "consecution", "run", str(path), "--mode", "inline", "--retries", "0", "--quiet"]

    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "")
