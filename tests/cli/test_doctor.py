from __future__ import annotations

import errno
import json
import os
import re
import resource
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Producer
from consecution.cli import main
from consecution.errors import StateDirError
from consecution.runtime import checkup
from consecution.runtime.checkup import BAD, EXTRAS, NOTE, OK, Finding, check_machine
from tests.conftest import WriteModule
from tests.docs.pages import ROOT

PIPELINE = """
import threading
from consecution import Node, Pipeline, Producer, TextLines

class Locked(Node):
    def __init__(self, name):
        super().__init__(name)
        self.lock = threading.Lock()
    def process(self, item):
        self.push(item)

def numbers():
    yield from range(3)

fit = Pipeline(Producer(range(3)) | str | TextLines("out", path="out.txt"))
here = Pipeline(Producer(numbers()) | str)
unfit = Pipeline(Producer(range(3)) | Locked("locked") | str)
"""


def findings(capsys: pytest.CaptureFixture[str], code: int, *words: Any) -> dict[str, Finding]:
    assert main(["doctor", "--json", *map(str, words)]) == code
    told = [Finding(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    return {finding.what: finding for finding in told}


def test_a_healthy_machine_is_told_what_it_has_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = findings(capsys, 0, "--state-dir", tmp_path / "a" / "state")

    assert BAD not in {finding.level for finding in found.values()}
    assert {
        "versions",
        "extras",
        "cores",
        "open files",
        "sockets",
        "file system",
        "free disk",
        "fsync",
        "store",
    } <= set(found)
    assert "lmdb" in found["versions"].found
    assert found["state directory"].found.endswith("state, which is to be made")
    assert " ms (the middle of 20" in found["fsync"].found
    assert os.listdir(tmp_path) == []


def test_people_get_a_line_for_each_and_the_remedy_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    versions         consecution ")


def test_a_pipeline_that_is_fit_is_told_so(write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> None:
    write_module("etl", PIPELINE)

    assert findings(capsys, 0, "etl.py:fit")["pipeline"].found.startswith("its 3 nodes can be sent to workers")
    assert findings(capsys, 0, "etl.py:here")["node producer"].level == NOTE


def test_what_cannot_be_sent_is_named(write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> None:
    write_module("etl", PIPELINE)

    found = findings(capsys, 1, "etl.py:unfit")

    assert found["node locked"].level == BAD
    assert "lock" in found["node locked"].found
    assert "pipeline" not in found


def test_a_pipeline_that_is_none_is_a_finding(write_module: WriteModule, capsys: pytest.CaptureFixture[str]) -> None:
    write_module("etl", "pipeline = 3\n")

    assert "is of the type int, and no Pipeline" in findings(capsys, 1, "etl.py")["pipeline"].found


def test_what_is_wrong_with_a_machine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100) / "state"
    deep.mkdir(parents=True)
    monkeypatch.setattr(checkup, "_kind_of_file_system", lambda place: "nfs4")
    monkeypatch.setattr(checkup, "SLOW_SYNC_S", -1.0)
    monkeypatch.setattr(checkup, "LEAST_FREE_BYTES", 1 << 80)
    monkeypatch.setattr(checkup, "NEEDED", ("lmdb", "no-such-distribution"))
    monkeypatch.setattr(resource, "getrlimit", lambda what: (20, 64))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    found = {finding.what: finding for finding in check_machine(deep, "0")}

    levels = {what: finding.level for what, finding in found.items() if finding.level != OK}
    assert levels == {
        "versions": BAD,
        "open files": BAD,
        "sockets": NOTE,
        "control socket": NOTE,
        "file system": BAD,
        "free disk": NOTE,
        "fsync": NOTE,
    }
    assert all(found[what].remedy for what in levels)
    assert found["free disk"].remedy.startswith("make room: a full disk ends the run")  # as guarantees.md says


@pytest.mark.parametrize(("extra", "name"), [(extra, name) for extra, names in EXTRAS.items() for name in names])
def test_an_extra_is_there_when_all_that_it_brings_is(monkeypatch: pytest.MonkeyPatch, extra: str, name: str) -> None:
    monkeypatch.setattr(checkup, "_version_of", lambda wanted: None if wanted == name else "1.0")

    (found,) = checkup._extras()

    assert f"{extra} (" not in found.found
    assert found.found.count("(") == len(EXTRAS) - 1
    assert found.remedy == f"where they are wanted: pip install 'consecution[{extra}]'"


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra: {re.split(r"[^a-z-]", requirement)[0] for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
    }

    assert {extra: set(names) for extra, names in EXTRAS.items()} == {
        extra: names for extra, names in named.items() if extra not in ("all", "dev", "examples")
    }


def test_a_folder_that_cannot_be_written_to_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)

    found = {finding.what: finding for finding in check_machine(tmp_path, "0")}

    assert found["state directory"].level == BAD
    assert "store" not in found


def test_what_a_run_would_not_take_for_its_state_directory_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)

    for path, why in (
        ("file", "file is there, and is no folder"),
        ("file/below", "file is there"),
        (".", "found file"),
    ):
        told = findings(capsys, 1, "--state-dir", path)["state directory"]
        assert (told.level, why in told.found) == (BAD, True), told
        with pytest.raises(StateDirError):
            Pipeline(Producer([1])).run(robustness="robust", state_dir=path)
    bad = tmp_path / os.fsdecode(b"gr\xfc\xdf")
    assert (
        "expected a path whose bytes are UTF-8" in findings(capsys, 1, "--state-dir", str(bad))["state directory"].found
    )
    bad.mkdir()
    assert (
        "expected a path whose bytes are UTF-8"
        in {found.what: found for found in check_machine(bad, "0")}["store"].found
    )
    assert findings(capsys, 0)["state directory"].level == OK
    Pipeline(Producer([1])).run(robustness="robust", state_dir="new")
    assert findings(capsys, 0, "--state-dir", "new")["state directory"].level == OK


def test_a_disk_that_cannot_be_written_to_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: open("/dev/full", "wb"))
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)

    found = {finding.what: finding for finding in check_machine(tmp_path, "0")}

    assert (found["fsync"].level, found["fsync"].remedy.partition(",")[0]) == (BAD, "make room on the disk")
    assert (found["store"].level, found["store"].remedy.partition(",")[0]) == (BAD, "mend that")


def test_the_file_system_of_a_place_is_that_of_its_mount() -> None:
    assert checkup._kind_of_file_system(Path("/proc/self")) == "proc"
