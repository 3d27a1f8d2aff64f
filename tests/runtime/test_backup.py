"""Backups of runs that go on, and of ones that are over; and what comes of them when they are put back."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from consecution import JsonLines, KeyedNode, Map, Pipeline, Producer, TextLines
from consecution.cli import main
from consecution.errors import DamagedStoreError, StateDirError, UsageError
from consecution.runtime import backup as backups
from consecution.runtime.backup import Restored, back_up, read_backup, restore
from consecution.runtime.journal_check import check_state_dir

DEADLINE_S = 60.0
ENDLESS = 10**9
KEYS = 7
OPTIONS: dict[str, Any] = {"robustness": "robust", "sync": "process", "batch_size": 20}


class Tally(KeyedNode):
    """Numbers the items of each key, and marks them otherwise in each execution."""

    def key(self, item: int) -> int:
        return item % KEYS

    def process(self, item: int) -> None:
        self.state["count"] = self.state.get("count", 0) + 1
        self.push({"item": item, "count": self.state["count"], "salt": os.urandom(4).hex()})


def make_pipeline(folder: Path, count: int) -> Pipeline:
    tally = Tally("tally") * 2
    rotating = JsonLines("parts", path=folder / "part-{number:03}.jsonl.gz", rotate_items=500)
    return Pipeline(Producer(range(count)) | tally | [JsonLines("whole", path=folder / "whole.jsonl"), rotating])


@contextmanager
def running(folder: Path, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    """The pipeline in a program of its own, which goes on until it is killed."""
    run = [sys.executable, "-m", "tests.runtime.test_backup", str(folder), mode]
    program = subprocess.Popen(run, start_new_session=True)
    try:
        yield program
        assert program.poll() is None, "it ended by itself"
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def run_to_the_end(folder: Path, count: int) -> None:
    report = make_pipeline(folder, count).run(mode="thread", state_dir=folder / "state", **OPTIONS)
    assert report.exit_code == 0


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_in_parts(live: Path, there: Path) -> list[dict[str, Any]]:
    """Those of the parts that went on there, and of the ones that were complete before."""
    parts = {path.name: path for path in there.glob("part-*")}
    complete = {path.name: path for path in live.glob("part-*") if path.name < min(parts, default="part-z")}
    lines = [line for path in {**complete, **parts}.values() for line in gzip.open(path, "rt")]
    return [json.loads(line) for line in lines]


def check_rows(rows: list[dict[str, Any]]) -> None:
    """Each item once, and each key's items numbered without a gap."""
    assert sorted(row["item"] for row in rows) == list(range(len(rows)))
    for key in range(KEYS):
        of_key = [(row["item"], row["count"]) for row in rows if row["item"] % KEYS == key]
        assert [count for _, count in sorted(of_key)] == list(range(1, len(of_key) + 1))


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_a_backup_of_a_live_run_goes_on_exactly_from_its_instant(tmp_path: Path, mode: str) -> None:
    live = tmp_path / "live"
    live.mkdir()
    backups = [tmp_path / f"backup-{number}" for number in range(3)]
    with running(live, mode):
        deadline_s = time.monotonic() + DEADLINE_S
        for number, backup in enumerate(backups):
            while not _has_grown(live / "whole.jsonl", number * 60_000):
                assert time.monotonic() < deadline_s
                time.sleep(0.002)
            back_up(live / "state", backup)
    whole = (live / "whole.jsonl").read_bytes()

    for backup in backups[::2]:
        there = tmp_path / f"there-{backup.name}"
        restore(backup, there / "state", files_to=there)
        found = check_state_dir(there / "state")
        assert found.problems == ()
        count = sum(origin.emitted for origin in found.origins if not origin.durable) + 500
        begun = b"".join(path.read_bytes() for path in there.glob("whole.jsonl"))  # None, before the first commit.
        assert whole.startswith(begun)
        run_to_the_end(there, count)

        rows = rows_of(there / "whole.jsonl")
        assert (there / "whole.jsonl").read_bytes().startswith(begun)
        assert len(rows) == count
        check_rows(rows)
        assert sorted(row["item"] for row in rows_in_parts(live, there)) == list(range(count))


def _has_grown(path: Path, size_bytes: int) -> bool:
    return path.exists() and path.stat().st_size > size_bytes


def write_lines(folder: Path, count: int, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    pipeline = Pipeline(Producer(range(count)) | Map(str, name="text") | TextLines("lines", path=folder / "out.txt"))
    return pipeline.run(mode="inline", state_dir=folder / "state", **{**OPTIONS, **options})


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Of a run that is over."""
    write_lines(tmp_path / "a", 5)
    back_up(tmp_path / "a" / "state", tmp_path / "backup")
    return tmp_path / "backup"


def test_a_backup_says_what_it_holds_and_is_private(tmp_path: Path, backup: Path) -> None:
    told = read_backup(backup)

    assert (told.state_dir, told.finished) == (str(tmp_path / "a" / "state"), True)
    assert [(file.sink, file.path, file.length) for file in told.files] == [
        ("lines.0", str(tmp_path / "a" / "out.txt"), 10)
    ]
    assert (backup / "files" / told.files[0].kept).read_text() == "0\n1\n2\n3\n4\n"
    assert {path.stat().st_mode & 0o077 for path in (backup, backup / "state", *backup.rglob("data.mdb"))} == {0}


def test_the_name_of_every_folder_that_is_made_is_synced(
    tmp_path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, real = set(), os.fsync

    def sync(file: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{file}")))
        real(file)

    monkeypatch.setattr(os, "fsync", sync)
    restore(backup, tmp_path / "b" / "c" / "state", files_to=tmp_path / "d" / "e")

    assert {tmp_path, tmp_path / "b", tmp_path / "b" / "c", tmp_path / "d", tmp_path / "d" / "e"} <= synced


def test_a_file_is_put_back_where_it_was_if_it_is_gone(tmp_path: Path, backup: Path) -> None:
    (tmp_path / "a" / "out.txt").unlink()

    restored = restore(backup, tmp_path / "b")

    assert restored == Restored(read_backup(backup), (str(tmp_path / "a" / "out.txt"),), ())
    assert (tmp_path / "a" / "out.txt").read_text() == "0\n1\n2\n3\n4\n"


def test_a_file_that_others_must_not_read_stays_so_in_a_backup_and_when_it_is_put_back(tmp_path: Path) -> None:
    write_lines(tmp_path / "a", 5)
    out = tmp_path / "a" / "out.txt"
    for mode in (0o600, 0o640):
        out.chmod(mode)
        made = back_up(tmp_path / "a" / "state", tmp_path / f"backup-{mode}")
        there = tmp_path / f"there-{mode}"
        restore(tmp_path / f"backup-{mode}", there / "state", files_to=there)

        (kept,) = made.files
        copies = (tmp_path / f"backup-{mode}" / "files" / kept.kept, there / "out.txt")
        assert [copy.stat().st_mode & 0o777 for copy in copies] == [mode, mode]


def test_a_file_that_has_grown_stays_and_the_sink_cuts_it(tmp_path: Path, backup: Path) -> None:
    out = tmp_path / "a" / "out.txt"
    with open(out, "a") as file:
        file.write("later\n")

    restored = restore(backup, tmp_path / "b")

    assert (restored.put_back, restored.as_they_are) == ((), (str(out),))
    assert out.read_text().endswith("later\n")


def test_another_file_is_written_over_only_by_force(tmp_path: Path, backup: Path) -> None:
    out = tmp_path / "a" / "out.txt"
    out.write_text("0\n1\nx\n3\n4\n")

    with pytest.raises(UsageError, match=r"out\.txt is there, and is not what lines\.0 had written"):
        restore(backup, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    restore(backup, tmp_path / "b", force=True)

    assert out.read_text() == "0\n1\n2\n3\n4\n"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "backup"]


def test_files_of_one_name_are_not_put_back_over_each_other(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    sinks = [TextLines("one", path=tmp_path / "a" / "out"), Map(str) | TextLines("two", path=tmp_path / "b" / "out")]
    Pipeline(Producer(["1", "2"]) | sinks).run(mode="inline", state_dir=tmp_path / "state", **OPTIONS)
    back_up(tmp_path / "state", tmp_path / "backup")

    with pytest.raises(UsageError, match=r"a/out of one\.0 and .*b/out of two\.0 would both .*0001-out and .*0002-out"):
        restore(tmp_path / "backup", tmp_path / "c", files_to=tmp_path / "d", force=True)

    assert sorted(os.listdir(tmp_path)) == ["a", "b", "backup", "state"]
    assert len(restore(tmp_path / "backup", tmp_path / "c").as_they_are) == 2


def test_nothing_that_is_there_is_written_over(tmp_path: Path, backup: Path) -> None:
    (tmp_path / "empty").mkdir()
    restore(backup, tmp_path / "empty")

    for target in (backup, tmp_path / "empty"):
        with pytest.raises(UsageError, match="exists already: give a folder that is new, or empty"):
            back_up(tmp_path / "a" / "state", target)
        with pytest.raises(UsageError, match="exists already"):
            restore(backup, target)


def test_nothing_is_made_where_no_journal_could_lie(tmp_path: Path, backup: Path) -> None:
    target = tmp_path / os.fsdecode(b"gr\xfc\xdf") / "state"

    with pytest.raises(StateDirError, match="expected a path whose bytes are UTF-8, as LMDB"):
        back_up(tmp_path / "a" / "state", target)
    with pytest.raises(StateDirError, match="expected a path whose bytes are UTF-8"):
        restore(backup, target)
    assert not target.parent.exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks /proc what a descriptor is")
def test_on_a_full_disk_it_is_said_in_words_what_could_not_be_made_and_what_to_do(
    tmp_path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = "No space left on device.*make room there, or give a folder on another disk"

    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(backups, "_sync_all", fill)
        for make in (
            lambda: back_up(tmp_path / "a" / "state", tmp_path / "b"),
            lambda: restore(backup, tmp_path / "b"),
        ):
            with pytest.raises(StateDirError, match=f"/b cannot be made: {full}") as caught:
                make()
            assert "Errno" not in str(caught.value)
    (tmp_path / "a" / "out.txt").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda file: fill(tmp_path) if _is_being_put_back(file) else None)
        with pytest.raises(
            StateDirError, match=r"/a/out\.txt of lines\.0 cannot be put back: No space left on dev.*room"
        ):
            restore(backup, tmp_path / "b")

    assert sorted(os.listdir(tmp_path)) == ["a", "backup"]
    assert sorted(os.listdir(tmp_path / "a")) == ["state"]


def _is_being_put_back(file: int) -> bool:
    return os.readlink(f"/proc/self/fd/{file}").endswith(".restored")


def test_where_nothing_can_be_made_it_is_said_in_words(tmp_path: Path, backup: Path) -> None:
    file = tmp_path / "a" / "out.txt"
    place = "give a folder in a place where this user can make one"

    for make in (back_up, restore):
        source = tmp_path / "a" / "state" if make is back_up else backup
        with pytest.raises(StateDirError, match=rf"{file}/b cannot be made: File exists \({file}\); {place}"):
            make(source, file / "b")
    with pytest.raises(
        StateDirError, match=r"out\.txt/out\.txt of lines\.0 cannot be put back: File exists .*--files-to"
    ):
        restore(backup, tmp_path / "b", files_to=file)
    assert not (tmp_path / "b").exists()


def test_a_backup_that_cannot_be_read_is_not_called_damaged(tmp_path: Path, backup: Path) -> None:
    with pytest.raises(StateDirError, match=r"cannot be read: Not a directory .*give a folder that") as caught:
        restore(backup / "backup.json", tmp_path / "b")
    assert not isinstance(caught.value, DamagedStoreError)


def test_damage_is_not_backed_up_and_not_put_back(tmp_path: Path, backup: Path) -> None:
    about = backup / "backup.json"
    for path, error in ((next(backup.rglob("data.mdb")), "damaged"), (about, "checksum is wrong")):
        sound = path.read_bytes()
        path.write_bytes(sound.replace(b"producer", b"consumer") if path != about else sound.replace(b"10", b"11"))
        with pytest.raises(DamagedStoreError, match=error):
            restore(backup, tmp_path / "b")
        path.write_bytes(sound)
    kept = backup / "files" / read_backup(backup).files[0].kept
    kept.write_text("0\n1\n2\n3\n5\n")
    (tmp_path / "a" / "out.txt").unlink()
    with pytest.raises(DamagedStoreError, match=r"the backup's file .* is damaged"):
        restore(backup, tmp_path / "b")
    manifest = tmp_path / "a" / "state" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("origins", "Origins"))
    with pytest.raises(DamagedStoreError):
        back_up(tmp_path / "a" / "state", tmp_path / "c")

    assert sorted(os.listdir(tmp_path)) == ["a", "backup"]


def test_a_file_that_is_shorter_than_what_was_committed_stops_a_backup(tmp_path: Path) -> None:
    write_lines(tmp_path / "a", 5)
    (tmp_path / "a" / "out.txt").write_text("0\n")

    with pytest.raises(StateDirError, match=r"out\.txt is shorter than the 10 bytes that were committed"):
        back_up(tmp_path / "a" / "state", tmp_path / "backup")
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_is_missing_stops_a_backup(tmp_path: Path) -> None:
    write_lines(tmp_path / "a", 5)
    (tmp_path / "a" / "out.txt").unlink()

    with pytest.raises(StateDirError, match=r"lines\.0: its file .*out\.txt is missing; 10 bytes .* put back"):
        back_up(tmp_path / "a" / "state", tmp_path / "backup")
    assert os.listdir(tmp_path) == ["a"]


def test_files_that_are_complete_may_have_been_taken_away(tmp_path: Path) -> None:
    run_to_the_end(tmp_path, 1200)
    for part in tmp_path.glob("part-*"):
        part.unlink()

    backup = back_up(tmp_path / "state", tmp_path / "backup")

    assert [Path(file.path).name for file in backup.files] == ["whole.jsonl"]


def test_what_is_no_backup_and_what_another_version_made_is_refused(tmp_path: Path, backup: Path) -> None:
    with pytest.raises(UsageError, match=r"is no backup: it has no backup\.json; give a folder that"):
        restore(tmp_path, tmp_path / "b")


def test_a_backup_that_another_user_has_made_is_put_back(
    tmp_path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: me + 1)
        restore(backup, tmp_path / "b", files=False)

    assert check_state_dir(tmp_path / "b").problems == ()


def test_the_commands_tell_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "a", 5)
    state, target = str(tmp_path / "a" / "state"), str(tmp_path / "backup")

    assert main(["backup", state, target]) == 0
    assert "out.txt: 10 bytes, of lines.0" in capsys.readouterr().out
    assert main(["backup", state, target]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["restore", target, str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["as_they_are"] == [str(tmp_path / "a" / "out.txt")]
    assert main(["restore", target, str(tmp_path / "c"), "--no-files"]) == 0
    assert "out.txt" not in capsys.readouterr().out
    assert main(["restore", target, str(tmp_path / "d"), "--files-to", str(tmp_path / "d-files")]) == 0
    assert (tmp_path / "d-files" / "out.txt").read_text() == "0\n1\n2\n3\n4\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    make_pipeline(folder, ENDLESS).run(mode=sys.argv[2], state_dir=folder / "state", **OPTIONS)  # type: ignore[arg-type]
