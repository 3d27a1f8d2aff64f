from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from consecution import Map
from consecution.errors import DamagedStoreError, StateDirError
from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.producer import Producer
from consecution.protocol.origin import BatchBorn, BatchDecided, FailureKept, Head, HeadMoved
from consecution.runtime import state as state_module
from consecution.runtime.journal_check import check_state_dir
from consecution.runtime.state import StateDir, look_at_state_dir, open_state_dir
from tests.runtime import records
from tests.runtime.records import batch, entry, open_journal

ROOT = Path(__file__).parents[2]


def plan(node: str = "text", source: str | None = None) -> Plan:
    top = Map(str, name=node)
    if source is None:
        return make_plan(top, Options.of(robustness="robust"), has_iterable=True)
    return make_plan((Producer([1], name=source) | top).top_node, Options.of(robustness="robust"))


def open_again(path: Path | None, of: Plan | None = None, *, fresh: bool = False) -> StateDir:
    return open_state_dir(path, of or plan(), fresh=fresh)


def put(state: StateDir, *changes: Any, head: Head) -> None:
    journal = open_journal(state)
    journal.apply([*changes, HeadMoved(head)])
    journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state directory that was used and closed."""
    path = tmp_path / "state"
    open_again(path).close()
    return path


# -- made ------------------------------------------------------------------------------------------


def test_it_is_made_for_its_owner_only_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down"

    state = open_again(path)
    state.close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert state.origin_path("source") == path / "origins" / "source"
    assert check_state_dir(path).problems == ()


def test_the_name_of_every_folder_that_is_made_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = set(), os.fsync

    def sync(file: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{file}")))
        real(file)

    monkeypatch.setattr(os, "fsync", sync)
    open_again(tmp_path / "a" / "b" / "state").close()

    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= synced


def test_a_relative_path_holds_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    state = open_again(Path("state"))
    monkeypatch.chdir("/")
    state.finish({})
    state.close()

    assert (tmp_path / "state" / "manifest.json").exists()


def test_opened_again_it_is_the_same_life(path: Path) -> None:
    epoch = json.loads((path / "manifest.json").read_text())["epoch"]

    state = open_again(path)
    state.close()

    assert state.epoch == epoch


def test_afresh_it_is_another_life_and_forgets_everything(path: Path) -> None:
    before = open_again(path)
    put(before, BatchBorn(batch(0)), head=Head(next_seq=1, emitted=1))
    before.finish({"emitted": 1})
    before.close()

    state = open_again(path, fresh=True)

    journal = open_journal(state)
    assert state.epoch != before.epoch
    assert state.finished_report is None
    assert journal.restore().head == Head()
    journal.close()
    state.close()


def test_a_finished_run_keeps_its_report(path: Path) -> None:
    state = open_again(path)
    state.finish({"emitted": 3, "text": "\ud800 é"})
    state.close()

    again = open_again(path)
    again.close()

    assert again.finished_report == {"emitted": 3, "text": "\ud800 é"}


def test_a_temporary_one_goes_away_unless_it_is_to_be_kept() -> None:
    gone, kept = open_again(None), open_again(None)

    gone.close(keep=False)
    kept.close()

    assert gone.temporary
    assert not gone.path.exists()
    assert kept.path.exists()
    open_again(kept.path, fresh=True).close()
    state_module.shutil.rmtree(kept.path)


def test_one_of_the_user_stays_whatever_happens(path: Path) -> None:
    state = open_again(path)

    state.close(keep=False)
    state.close(keep=False)

    assert path.exists()


def test_a_temporary_one_that_cannot_be_used_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(state_module, "_write_manifest", lambda *_: (_ for _ in ()).throw(OSError("no room")))

    with pytest.raises(StateDirError, match="no room"):
        open_again(None)

    assert list(tmp_path.iterdir()) == []


# -- names -----------------------------------------------------------------------------------------

ODD_NAMES = [
    "a/b",
    "a_b",
    "a b",
    "a.b",
    "A_b",
    "..",
    ".",
    "\u00e9",
    "e\u0301",
    "a" * 300,
    "a" * 301,
    "\ud800",
    "x\0y",
    "日本",
    "",
]


def test_every_name_has_a_folder_of_its_own(path: Path) -> None:
    state = open_again(path)
    state.close()

    folders = [state.origin_path(name) for name in ODD_NAMES]

    assert len({str(folder).casefold() for folder in folders}) == len(ODD_NAMES)
    for folder in folders:
        assert folder.parent == path / "origins"
        assert len(os.fsencode(folder.name)) < 100
        assert folder.name.isascii()


def test_no_plain_name_is_taken_for_a_hashed_one(path: Path) -> None:
    state = open_again(path)
    state.close()
    odd = state.origin_path("a/b").name

    assert state.origin_path(odd).name != odd


@pytest.mark.parametrize("name", ["a/b", "../up", "x\0y", "日本", "\ud800"])
def test_a_source_of_any_name_finds_its_journal_again(tmp_path: Path, name: str) -> None:
    of = plan(source=name)
    open_again(tmp_path / "state", of).close()

    open_again(tmp_path / "state", of).close()

    found = check_state_dir(tmp_path / "state")
    assert found.problems == ()
    assert [origin.name for origin in found.origins] == [name]


# -- refused ---------------------------------------------------------------------------------------


def test_another_run_is_refused_and_named(path: Path) -> None:
    state = open_again(path)

    with pytest.raises(StateDirError, match=rf"is in use by another run \(process {os.getpid()}\): wait for it"):
        open_again(path)

    state.close()
    open_again(path).close()


def test_a_run_that_was_killed_leaves_no_lock(path: Path) -> None:
    text = f"""
from pathlib import Path
from tests.runtime.records import open_state
state = open_state(Path({str(path)!r}))
print("locked", flush=True)
import time
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(StateDirError, match=rf"process {holder.pid}"):
        open_again(path)

    holder.kill()
    holder.wait(timeout=10)
    holder.stdout.close()

    open_again(path).close()


def test_one_of_another_owner_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module.os, "getuid", lambda: path.stat().st_uid + 1)

    with pytest.raises(StateDirError, match=r"belongs to user \d+, this process runs as \d+: run as its owner"):
        open_again(path)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "origins").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(StateDirError, match=r"is not a state directory: .* found origins, thesis\.tex"):
        open_again(tmp_path, fresh=fresh)

    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateDirError, match=r"file.* cannot be used: .*give a folder that can be written to"):
            open_again(path)


NO_UTF_8 = os.fsdecode(b"gr\xfc\xdf")


def test_a_path_that_is_no_utf_8_is_refused_before_anything_is_made(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / NO_UTF_8 / "state"
    with pytest.raises(StateDirError) as raised:
        open_again(bad)

    assert str(raised.value) == (
        f"the state directory {str(bad)!r} cannot be used: expected a path whose bytes are UTF-8, as LMDB needs it; "
        f"found {os.fsencode(bad)!r}: give another folder as state_dir"
    )
    assert not bad.parent.exists()

    open_again(path).close()
    shutil.copytree(path, bad)
    for look in (check_state_dir, look_at_state_dir):
        with pytest.raises(StateDirError, match="move it to where no folder has such a name"):
            look(bad)

    monkeypatch.setattr(tempfile, "tempdir", str(bad.parent))
    with pytest.raises(StateDirError, match=r"the folder of temporary files .* set TMPDIR, or give a state_dir"):
        open_again(None)
    assert os.listdir(bad.parent) == ["state"]


def test_a_path_in_utf_8_is_taken_whatever_it_says(tmp_path: Path) -> None:
    open_again(tmp_path / "grüß 日本" / "state").close()

    assert check_state_dir(tmp_path / "grüß 日本" / "state").problems == ()


def test_another_format_is_refused(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({"format": 5, "quite": "different", **manifest, **{"format": 5}}))

    with pytest.raises(StateDirError, match="has format 5; this version reads 4"):
        open_again(path)


def test_a_source_that_was_read_and_is_gone_is_named(path: Path) -> None:
    state = open_again(path)
    put(state, head=Head(position=1500, emitted=1500))
    state.close()

    with pytest.raises(StateDirError, match=r"how far the source 'source' was read \(1,500 items\).*drop_state=True"):
        open_again(path, plan(source="pages"))
    open_again(path).close()


def test_every_flipped_byte_of_the_manifest_is_noticed(path: Path) -> None:
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    for at in range(len(whole)):
        manifest.write_bytes(whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :])

        with pytest.raises((DamagedStoreError, StateDirError)) as caught:
            open_again(path)

        assert str(manifest) in str(caught.value)
    manifest.write_bytes(whole)
    open_again(path).close()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"text"', "{}", '{"format": 4}'])
def test_a_manifest_that_is_none_is_damage_unless_all_is_to_be_forgotten(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)

    with pytest.raises(DamagedStoreError, match=r"manifest\.json is damaged: .*or start afresh") as caught:
        open_again(path)

    assert caught.value.record == "manifest"
    open_again(path, fresh=True).close()
    open_again(path).close()


def test_a_refused_one_is_not_left_locked(path: Path) -> None:
    whole = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text("{")
    with pytest.raises(DamagedStoreError):
        open_again(path)

    (path / "manifest.json").write_text(whole)

    open_again(path).close()


# -- its journals ----------------------------------------------------------------------------------


def test_a_journal_that_is_gone_is_never_begun_again(path: Path) -> None:
    state_module.shutil.rmtree(path / "origins")

    for _ in range(2):
        with pytest.raises(
            DamagedStoreError, match=r"origins/source was made before, but its file data\.mdb is missing"
        ):
            open_again(path)

    open_again(path, fresh=True).close()


def test_a_journal_of_another_directory_is_refused(path: Path, tmp_path: Path) -> None:
    open_again(tmp_path / "other").close()
    state_module.shutil.rmtree(path / "origins")
    state_module.shutil.copytree(tmp_path / "other" / "origins", path / "origins")

    with pytest.raises(StateDirError, match="it was copied here from another state directory"):
        open_again(path)


def test_a_journal_made_anew_under_the_same_epoch_is_refused(path: Path) -> None:
    state_module.shutil.rmtree(path / "origins")
    epoch = json.loads((path / "manifest.json").read_text())["epoch"]
    state_module.Journal(path / "origins" / "source", origin="source", epoch=epoch).close()

    with pytest.raises(StateDirError, match=r"has the uuid \w+; expected \w+, as .*manifest\.json says"):
        open_again(path)


# -- a changed graph -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ([BatchBorn(batch(0))], Head(next_seq=1, emitted=1)),
        ([BatchDecided(0), FailureKept(entry(0, due_s=1.0))], Head(next_seq=1, next_key=1, emitted=1)),
    ],
    ids=["a batch", "a retry"],
)
def test_a_changed_graph_is_refused_while_something_is_in_flight(path: Path, changes: list[Any], head: Head) -> None:
    state = open_again(path)
    put(state, *changes, head=head)
    state.close()

    with pytest.raises(StateDirError, match=r"the graph has changed, and .* holds 1 batches in flight"):
        open_again(path, plan("other"))

    open_again(path).close()


def test_a_changed_graph_goes_on_where_nothing_is_in_flight(path: Path) -> None:
    state = open_again(path)
    put(state, BatchBorn(batch(0)), BatchDecided(0), head=Head(1, 1, 1, 5, 1, 0))
    state.close()

    moved = open_again(path, plan("other"))
    journal = open_journal(moved)
    position = journal.restore().head.position
    journal.close()
    moved.close()

    assert moved.epoch != state.epoch
    assert position == 5
    open_again(path, plan("other")).close()


def test_only_what_a_move_has_left_goes_away(path: Path) -> None:
    for name in ("origins.before-upgrade", "origins." + "0" * 32, "origins-2", "origins.0"):
        shutil.copytree(path / "origins", path / name)
    (path / "origins.tar").write_bytes(b"a copy, too")

    open_again(path).close()

    assert {found.name for found in path.glob("origins*")} == {
        "origins",
        "origins.before-upgrade",
        "origins-2",
        "origins.0",
        "origins.tar",
    }
    assert check_state_dir(path).problems == ()


# -- crashes while it is made ----------------------------------------------------------------------


class Crash(BaseException):
    pass


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("call", ["replace", "fsync", "rmtree", "open"])
def test_a_crash_at_any_step_of_the_making_leaves_something_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fresh: bool
) -> None:
    module = {"replace": os, "fsync": os, "rmtree": state_module.shutil, "open": os}[call]
    real = getattr(module, call)
    survived = False
    for step in range(20):
        path = tmp_path / str(step)
        if fresh:
            open_again(path).close()
        calls = iter(range(step))

        def crash(*args: Any, calls: Any = calls, **kwargs: Any) -> Any:
            if next(calls, None) is None:
                raise Crash
            return real(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(module, call, crash)
            try:
                open_again(path, fresh=fresh).close()
                survived = True
            except Crash:
                pass

        again = open_again(path)
        journal = open_journal(again)
        assert journal.restore().head == Head()
        journal.close()
        again.close()
        assert check_state_dir(path).problems == ()
        if survived:
            break
    assert survived


@pytest.mark.parametrize("fresh", [False, True])
def test_after_a_crash_before_the_stores_were_made_any_plan_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    if fresh:
        open_again(tmp_path, plan("used", "zero")).close()
    with monkeypatch.context() as patched:
        patched.setattr(state_module, "_make_origins", lambda *_: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            open_again(tmp_path, plan("old", "one"), fresh=fresh)

    open_again(tmp_path, plan("new", "two")).close()
    again = open_again(tmp_path, plan("new", "two"))
    again.close()

    assert (again.sources, again.origins, again.tasks) == (["two"], ["two"], ["two.0", "new.0"])
    assert check_state_dir(tmp_path).problems == ()


def test_a_manifest_is_replaced_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (path / "manifest.json").read_bytes()
    state = open_again(path)
    seen: list[bytes] = []
    real = os.replace

    def look(old: Any, new: Any) -> None:
        seen.append((path / "manifest.json").read_bytes())
        assert json.loads(Path(old).read_bytes())["finished"] == {"emitted": 1}
        real(old, new)

    monkeypatch.setattr(os, "replace", look)

    state.finish({"emitted": 1})
    state.close()

    assert seen == [before]
    assert records.plan().signature == json.loads((path / "manifest.json").read_bytes())["signature"]
