from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Pipeline, Producer, Reduce
from consecution.cli import main
from consecution.cli.failed import time_of
from consecution.cli.outside import new_file
from consecution.errors import UsageError
from consecution.options import Options
from consecution.plan import make_plan
from consecution.runtime.journal_check import check_state_dir
from consecution.runtime.state import open_state_dir

Call = Callable[..., tuple[int, str, str]]


def halve(item: Any) -> Any:
    if item in (3, "three"):
        raise ValueError(f"{item} has no half")
    if item == (5, 5):
        raise LookupError("a pair")
    return item


def chain() -> Any:
    return Producer([1, 3, "three", (5, 5)], name="numbers") | Map(halve, name="halve") | Map(str, name="text")


def run(state_dir: Path) -> Any:
    return Pipeline(chain()).run(mode="inline", state_dir=state_dir, retries=0)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """The state directory of a finished run in which three items were given up."""
    run(tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def call(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs ``consecution failed``: (exit code, output, errors)."""

    def call(action: str, *arguments: Any) -> tuple[int, str, str]:
        code = main(["failed", action, str(state_dir), *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


# -- looking ---------------------------------------------------------------------------------------


def test_list_has_a_line_for_each_item(call: Call) -> None:
    code, out, _ = call("list")

    first, second, third = out.splitlines()
    assert code == 0
    assert first.startswith("numbers:0  20")
    assert first.endswith("at halve, 1 try: ValueError: 3 has no half; item 3")
    assert second.endswith("ValueError: three has no half; item 'three'")
    assert third.endswith("LookupError: a pair; item (5, 5)")


def test_list_takes_filters_and_tells_json(call: Call) -> None:
    _, out, _ = call("list", "--error", "no half", "--node", "halve", "--since", "1h", "--limit", 1, "--json")

    (told,) = map(json.loads, out.splitlines())
    assert (told["id"], told["node"], told["state"], told["attempts"]) == ("numbers:0", "halve", "given up", 1)
    assert (told["error"], told["shown"]) == ("ValueError: 3 has no half", "3")
    assert datetime.fromisoformat(told["failed_at"]).tzinfo is not None


@pytest.mark.parametrize(
    "filters", [["--node", "text"], ["--until", "1d"], ["--since", "2999-01-01"], ["--error", "KeyError"]]
)
@pytest.mark.parametrize("action", ["list", "show"])
def test_nothing_found_is_said(call: Call, action: str, filters: list[str]) -> None:
    assert call(action, *filters) == (0, "no failed items like that; there are 3 at halve\n", "")
    assert call(action, *filters, "--json") == (0, "", "")


def test_show_prints_traceback_and_item(call: Call) -> None:
    _, out, _ = call("show", "--id", "numbers:2")

    assert out.startswith("numbers:2: at halve, 20")
    assert 'raise LookupError("a pair")' in out
    assert out.rstrip().endswith("item: (5, 5)")


def test_looking_goes_on_while_a_run_holds_the_directory(call: Call, state_dir: Path) -> None:
    held = open_state_dir(state_dir, make_plan(chain().top_node, Options.of()), fresh=False)

    try:
        listed, dropped = call("list"), call("drop", "--all")
    finally:
        held.close()

    assert listed[0] == 0
    assert dropped[0] == 2
    assert "in use by another run" in dropped[2]
    assert "kill -TERM" in dropped[2]


def test_a_reader_that_has_seen_enough_is_no_mistake(state_dir: Path) -> None:
    command = [sys.executable, "-m", "consecution", "failed", "show", str(state_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    with process:
        error = process.stderr.read()

    assert (process.returncode, error) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("words", [["list"], ["export"]])
def test_output_that_cannot_be_written_is_said_in_a_line(state_dir: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "consecution", "failed", *words, str(state_dir)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("consecution: standard output cannot be written: No space left on device; ")
    assert done.stderr.count("\n") == 1


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "--id", "numbers:9"], "there is no failed item numbers:9"),
        (["drop"], "this would drop every failed item: say --all"),
        (
            ["retry", "--from", "/nowhere/at/all"],
            "--from /nowhere/at/all: No such file or directory; give a file of `consecution failed export`",
        ),
        (
            ["retry", "--from", "/dev/null"],
            "--from: the file names no items: write it with `consecution failed export`",
        ),
        (["export", "--output", "/nowhere/at/all"], "--output /nowhere/at/all: No such file or directory; give the"),
    ],
)
def test_a_mistake_exits_2_and_says_what_to_do(call: Call, state_dir: Path, arguments: list[str], message: str) -> None:
    code, out, error = call(*arguments)

    assert (code, out) == (2, "")
    assert message in error
    assert check_state_dir(state_dir).finished


def test_a_folder_that_is_no_state_directory_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (["list"], ["show"], ["export"], ["retry"], ["drop", "--all"]):
        assert main(["failed", action[0], str(tmp_path), *action[1:]]) == 2
        assert "is not a state directory" in capsys.readouterr().err


@pytest.mark.parametrize("action", [["list"], ["retry"]])
def test_a_store_that_is_gone_or_damaged_exits_2_and_is_named(call: Call, state_dir: Path, action: list[str]) -> None:
    data = state_dir / "origins" / "numbers" / "data.mdb"
    for damage in (lambda: data.write_bytes(b"no store" * 2000), data.unlink):
        damage()

        code, out, error = call(*action)

        assert (code, out) == (2, "")
        assert str(data.parent) in error
        assert "from a backup" in error


def test_text_that_no_terminal_takes_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(item: str) -> None:
        raise ValueError(item)

    Pipeline(Map(refuse, name="refuse")).run(["\udcff"], mode="inline", state_dir=tmp_path, retries=0)

    for action in ("list", "show"):
        assert main(["failed", action, str(tmp_path)]) == 0
        assert "ValueError: \\udcff" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["yesterday", "2h30", "2026-13-01", "", "9" * 400 + "d"])
def test_a_time_that_is_none_is_refused(call: Call, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        call("list", "--since", text)

    assert "expected 2026-01-31, 2026-01-31T12:00, 90s, 30m, 2h or 7d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("1.5h", timedelta(hours=1.5)),
        ("7d", timedelta(7)),
    ],
)
def test_a_time_may_be_said_by_how_long_ago_it_was(monkeypatch: pytest.MonkeyPatch, text: str, ago: timedelta) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)

    assert time_of(text) == 1e9 - ago.total_seconds()


def test_a_time_without_a_zone_is_local() -> None:
    assert time_of("2026-01-31T12:00") == datetime(2026, 1, 31, 12).timestamp()
    assert time_of("2026-01-31T12:00+00:00") == datetime.fromisoformat("2026-01-31T12:00+00:00").timestamp()


# -- changing --------------------------------------------------------------------------------------


def test_an_export_that_fails_leaves_no_file_that_looks_whole(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "failed.jsonl"

    unknown = call("export", "--id", "numbers:99", "--output", exported)
    there_after_it = exported.exists()
    nowhere = main(["failed", "export", str(tmp_path / "none"), "--output", str(exported)])

    assert (unknown[0], there_after_it) == (2, False), unknown
    assert (nowhere, exported.exists()) == (2, False), capsys.readouterr().err


def test_an_export_to_a_full_disk_is_said_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"

    said = "No space left on device, so nothing is left of it"
    with pytest.raises(UsageError, match=said), new_file("--output", path):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert not path.exists()


def test_items_are_exported_edited_and_put_back(call: Call, state_dir: Path, tmp_path: Path) -> None:
    exported = tmp_path / "failed.jsonl"
    written = call("export", "--json", "--output", exported)
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    lines[0]["item"] = 30
    (tmp_path / "edited.jsonl").write_text("\n".join(json.dumps(line) for line in (lines[0], lines[2])))

    put_back = call("retry", "--from", tmp_path / "edited.jsonl")
    again = run(state_dir)

    assert written == (0, f"3 failed items written to {exported}\n", "")
    assert (lines[0]["id"], lines[1]["item"], "item" in lines[2], "pickle" in lines[2]) == (
        *("numbers:0", "three", False, True),
    )
    assert put_back == (
        *(
            0,
            "2 failed items put back at the nodes they failed at; the next run with this state_dir tries them again\n",
            "",
        ),
    )
    assert sorted(str(failure.item) for failure in again.failures) == ["(5, 5)", "three"]
    assert (again.completed, again.failed, again.open) == (4, 2, 0)


def test_lines_may_come_from_standard_input(call: Call, monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    _, out, _ = call("export", "--id", "numbers:0")
    monkeypatch.setattr("sys.stdin", io.StringIO(out.replace('"item": 3', '"item": 8')))

    code, out, _ = call("retry", "--from", "-", "--at-source", "--json")
    again = run(state_dir)

    assert (code, json.loads(out)) == (0, {"ids": ["numbers:0"], "dry_run": False})
    assert (again.emitted, again.completed, again.failed) == (5, 5, 2)


@pytest.mark.parametrize(
    ("format", "text", "record"),
    [("csv", "id,n\n1,1\n2\n", {"id": "2", "n": "7"}), ("ndjson", '{"id": "1", "n": 1}\n{"id"', {"id": "2", "n": 7})],
)
@pytest.mark.parametrize("at_source", [[], ["--at-source"]])
def test_bad_input_is_mended_as_its_error_says(
    format: str, text: str, record: Any, at_source: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the record that the source should have made of it, which is not parsed again."""
    (tmp_path / "input").write_text(text)
    state_dir, edited = tmp_path / "records", tmp_path / "edited"
    taken: list[Any] = []

    def run() -> Any:
        chain = Producer("files", str(tmp_path / "input"), format) | Map(
            lambda row: taken.append(int(row["n"])), "take"
        )
        return Pipeline(chain).run(mode="inline", state_dir=state_dir, retries=0)

    failed = run().failures[0]
    main(["failed", "export", str(state_dir)])
    told = json.loads(capsys.readouterr().out)
    edited.write_text(json.dumps({**told, "item": record}))

    assert "put it back as " in failed.error
    assert "for it is not parsed again" in failed.error
    assert main(["failed", "retry", str(state_dir), "--from", str(edited), *at_source]) == 0
    assert (run().failed, taken) == (0, [1, 7])


def test_what_durable_nodes_keep_is_mended_on_its_way_to_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def total() -> Any:
        return Producer(["1", "2", "x3"], name="texts") | Map(str.strip) | Reduce(lambda _: 0, 0, _add, "total")

    state_dir, exported = tmp_path / "state", tmp_path / "failed.jsonl"
    Pipeline(total()).run(mode="inline", state_dir=state_dir, retries=0)
    main(["failed", "export", str(state_dir), "--output", str(exported)])
    exported.write_text(exported.read_text().replace('"item": "x3"', '"item": " 3 "'))
    capsys.readouterr()

    code = main(["failed", "retry", str(state_dir), "--from", str(exported), "--at-source"])
    again = Pipeline(total()).run(mode="inline", state_dir=state_dir, retries=0)

    assert (code, capsys.readouterr().out) == (
        0,
        "1 failed item put back at the source; the next run with this state_dir tries them again\n",
    )
    assert (again.emitted, again.completed, again.failed) == (4, 4, 0)


def _add(total: int, text: str) -> int:
    return total + int(text)


def test_a_file_may_be_given_again(call: Call, state_dir: Path, tmp_path: Path) -> None:
    exported = tmp_path / "failed.jsonl"
    call("export", "--output", exported)
    assert call("retry", "--id", "numbers:1", "--at-source")[0] == 0

    rest = call("retry", "--from", exported, "--at-source")
    nothing = call("retry", "--from", exported, "--at-source", "--json")
    again = run(state_dir)

    at_source = "put back at the source; the next run with this state_dir tries them again"
    assert rest == (
        0,
        f"2 failed items {at_source}\n",
        f"--from {exported}: 1 of its ids are no failed items (any more): numbers:1\n",
    )
    assert (nothing[0], json.loads(nothing[1])) == (0, {"ids": [], "dry_run": False})
    assert nothing[2].endswith("3 of its ids are no failed items (any more): numbers:0, numbers:1, numbers:2\n")
    assert (again.emitted, again.failed) == (7, 3)


def test_from_and_filters_do_not_go_together(call: Call, tmp_path: Path) -> None:
    (tmp_path / "edited.jsonl").write_text('{"id": "numbers:0", "item": 8}')

    code, _, error = call("retry", "--from", tmp_path / "edited.jsonl", "--node", "halve")

    assert code == 2
    assert "--from names the items itself: leave out the other filters" in error


def test_an_export_writes_over_no_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")

    code, _, error = call("export", "--output", tmp_path / "mine")

    assert (code, (tmp_path / "mine").read_text()) == (2, "mine")
    assert "give the name of a new file" in error


def test_a_dry_run_names_the_items_and_changes_nothing(call: Call, state_dir: Path) -> None:
    retried = call("retry", "--error", "half", "--dry-run")
    dropped = call("drop", "--id", "numbers:2", "--dry-run")
    all_dropped = call("drop", "--dry-run")

    assert retried == (0, "numbers:0\nnumbers:1\n2 failed items would be put back\n", "")
    assert dropped == (0, "numbers:2\n1 failed item would be dropped\n", "")
    assert all_dropped == (0, "numbers:0\nnumbers:1\nnumbers:2\n3 failed items would be dropped\n", "")
    assert len(call("list")[1].splitlines()) == 3
    assert check_state_dir(state_dir).finished


def test_what_is_dropped_is_gone(call: Call, state_dir: Path) -> None:
    assert call("drop", "--error", "half") == (0, "2 failed items dropped\n", "")
    assert call("drop", "--all") == (0, "1 failed item dropped\n", "")
    assert call("drop", "--all") == (0, "no failed items\n", "")

    assert check_state_dir(state_dir).problems == ()
