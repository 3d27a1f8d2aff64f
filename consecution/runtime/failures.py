"""The failure store as a person sees it: the failed items of all origins of a state directory, read as one.

Each origin keeps its own in its table ``failures``. Looking is possible while a run goes on; whoever changes
something holds the supervisor's lock and, one after another, the origins' own.

What is put back is tried again by the next run: at the node it failed at, with all its tries, or as a new item of
the source. In the books an item that is put back is not failed but pending, and one that is dropped is neither:
an origin's ``failed`` counts the entries that are given up, so it falls with both.
"""

from __future__ import annotations

import json
import math
import pickle
import pickletools
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from consecution.errors import UsageError, text_of
from consecution.protocol.origin import (
    NO_ROOT,
    BatchBorn,
    BatchRecord,
    Change,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
)
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import USER_ERRORS, Labelled, Stage, unlabelled
from consecution.reduction import PartTable
from consecution.runtime import failpoints
from consecution.runtime.glimpse import Glimpse
from consecution.runtime.journal import FailuresMoved, Journal
from consecution.runtime.main_module import where_to_load
from consecution.runtime.state import StateDir, lock_state_dir, look_at_state_dir
from consecution.runtime.takeover import take_over
from consecution.transport.codec import PickleCodec, mark_put_back

ENTRIES_PER_COMMIT = 1000
LABEL_BYTES = 256
"""In so many bytes the pickle of a `Labelled` says what it is."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed item with the names that a person knows. The id is the origin's name and the entry's number."""

    origin: str
    node: str
    entry: FailureEntry

    @property
    def id(self) -> str:
        return f"{self.origin}:{self.entry.key}"

    @property
    def given_up(self) -> bool:
        """False: it waits for another try."""
        return self.entry.due_s is None

    @property
    def is_part_table(self) -> bool:
        """True: it is no item of the user's, but what the items of a key came to before their replica got it."""
        return self.entry.failed.shown.startswith(PartTable.__name__) and type(self.item()) is PartTable

    def item(self) -> Any:
        """The item itself; UsageError where it was not kept, or what it is made of is not there."""
        payload = self.entry.failed.payload
        if payload is None:
            raise UsageError(f"{self.id}: the item could not be kept; {self.entry.failed.shown}")
        try:
            return pickle.loads(payload)[0]
        except USER_ERRORS as error:
            raise UsageError(
                f"{self.id}: the item cannot be loaded here ({text_of(error)}); {where_to_load(error)}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the item as ``item`` where JSON can hold it, else as ``pickle`` and ``shown``."""
        failed = self.entry.failed
        told: dict[str, Any] = {
            "id": self.id,
            "node": self.node,
            "state": "given up" if self.given_up else "waiting",
            "failed_at": datetime.fromtimestamp(self.entry.failed_s, UTC).isoformat(timespec="milliseconds"),
            "attempts": self.entry.attempts,
            "error": failed.error,
            "traceback": failed.traceback,
            "shown": failed.shown,
        }
        if failed.payload is not None:
            told |= _item_fields(self, failed.payload)
        return told


def _item_fields(failed: Failed, payload: bytes) -> dict[str, Any]:
    try:
        item = unlabelled(failed.item())
        if is_plain(item):
            return {"item": item}
    except (UsageError, RecursionError):
        pass
    return {"pickle": b64encode(payload).decode()}


def is_plain(value: Any) -> bool:
    """Whether JSON gives back the very same: no tuples, no keys that are no text, no NaN, no subclasses."""
    kind = type(value)
    if kind is list:
        return all(map(is_plain, value))
    if kind is dict:
        return all(type(key) is str for key in value) and all(map(is_plain, value.values()))
    return value is None or kind in (str, int, bool) or (kind is float and math.isfinite(value))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which failed items a command is about. What is not given selects all.

    ``error`` is a text that the error contains, or a regular expression found in it; times are wall-clock seconds.
    With ``some_may_be_gone`` an id that is not there is no mistake.
    """

    nodes: tuple[str, ...] = ()
    error: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    ids: tuple[str, ...] = ()
    limit: int | None = None
    some_may_be_gone: bool = False

    @property
    def is_all(self) -> bool:
        return self == Selection()

    def of(self, found: Iterator[Failed]) -> Iterator[Failed]:
        """Those that are selected, in their order. UsageError, at the end, for ids that were not among them
        (unless they may be gone).
        """
        wanted = dict.fromkeys(self.ids)
        unseen = dict(wanted)
        for failed in islice((f for f in found if self._takes(f, wanted)), self.limit):
            unseen.pop(failed.id, None)
            yield failed
        if unseen and self.limit is None and not self.some_may_be_gone:
            raise UsageError(f"there is no failed item {', '.join(unseen)} (or another filter leaves it out)")

    def _takes(self, failed: Failed, wanted: dict[str, None]) -> bool:
        at_s = failed.entry.failed_s
        return (
            (not wanted or failed.id in wanted)
            and (not self.nodes or failed.node in self.nodes)
            and (self.since_s is None or at_s >= self.since_s)
            and (self.until_s is None or at_s < self.until_s)
            and (self.error is None or _is_in(self.error, failed.entry.failed.error))
        )


def _is_in(pattern: str, error: str) -> bool:
    if pattern in error:
        return True
    try:
        return re.search(pattern, error) is not None
    except re.error:
        return False


# -- looking -------------------------------------------------------------------------------------


def look(path: Path) -> Iterator[Failed]:
    """The failed items of a state directory, origin by origin, oldest first. A run may go on meanwhile."""
    state = look_at_state_dir(path)
    void = _void_in(state)
    for name in state.origins:
        with Glimpse(state.origin_path(name)).opened() as journal:
            gone = void.get(name, ())
            yield from (failed for failed in _named(state, name, journal) if failed.entry.key not in gone)


def _void_in(state: StateDir) -> dict[str, set[int]]:
    """The entries of each origin that another one has taken over, and that may still be there."""
    void: dict[str, set[int]] = {}
    for name in state.takers:
        with Glimpse(state.origin_path(name)).opened() as journal:
            moved = journal.moved
        if moved is not None:
            void.setdefault(moved.origin, set()).update(moved.keys)
    return void


def _named(state: StateDir, origin: str, journal: Journal) -> Iterator[Failed]:
    for entry in journal.failed_entries():
        yield Failed(origin, _node_of(state.tasks, entry), entry)


def _node_of(tasks: list[str], entry: FailureEntry) -> str:
    task = entry.failed.task
    return tasks[task].rpartition(".")[0] if task < len(tasks) else f"task {task}"


# -- changing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edited:
    """What is to take the place of an item."""

    payload: bytes
    shown: str
    is_pickle: bool = True

    @classmethod
    def of(cls, told: dict[str, Any]) -> Edited:
        """From a line of an export: its ``item``, or its ``pickle``, which is not loaded here."""
        if "item" in told:
            return cls.of_item(told["item"])
        if "pickle" not in told:
            raise UsageError(
                f"{told['id']}: the line has neither an item nor a pickle: give it one, as `failed export` writes it"
            )
        try:
            payload = b64decode(told["pickle"], validate=True)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{told['id']}: its pickle is no base64: {error}; leave it as `failed export` writes it, or give an "
                "item in its place"
            ) from error
        _check_is_pickle(told["id"], payload)
        return cls(payload, str(told.get("shown", "<edited>")))

    @classmethod
    def of_item(cls, item: Any) -> Edited:
        return cls(PickleCodec().encode([item]), shorten_repr(item), is_pickle=False)

    def labelled(self, label: str) -> Edited:
        """To go the way of the one whose place it takes; a pickle has the label in it, as it was exported."""
        return self if self.is_pickle else Edited.of_item(Labelled(label, pickle.loads(self.payload)[0]))


def _label_of(failed: Failed) -> str | None:
    """The label of an item that has one; UsageError where that cannot be loaded. Others are not: one may be poison."""
    if Labelled.__qualname__.encode() not in (failed.entry.failed.payload or b"")[:LABEL_BYTES]:
        return None
    item = failed.item()
    return item.label if type(item) is Labelled else None


def _check_is_pickle(id_: str, payload: bytes) -> None:
    """Step by step from its beginning to where it says that it ends; no step is taken."""
    try:
        for _ in pickletools.genops(payload):
            pass
    except ValueError as error:
        raise UsageError(
            f"{id_}: its pickle is none: {error}; leave it as `failed export` writes it, or give an item in its place"
        ) from error


def read_edited(lines: Iterator[str], name: str) -> dict[str, Edited]:
    """Id → what is to take the item's place, from JSON lines as an export writes them. Other fields are ignored."""
    edited: dict[str, Edited] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{name}, line {number}: expected JSON, {error}") from error
        if not isinstance(told, dict) or not isinstance(told.get("id"), str):
            raise UsageError(f'{name}, line {number}: expected an object with an "id", as `failed export` writes it')
        if told["id"] in edited:
            raise UsageError(f"{name}, line {number}: the id {told['id']} was there before; keep one of the lines")
        edited[told["id"]] = Edited.of(told)
    return edited


Changes = Callable[[Head, Failed], tuple[Head, list[Change]]]
"""What is to happen to one entry: the head after it, and the changes."""


class FailureStore:
    """The failed items of a state directory that no run holds. A context manager."""

    def __init__(self, path: Path) -> None:
        self._state = lock_state_dir(path)

    def __enter__(self) -> FailureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._state.close()

    def drop(self, selection: Selection, *, dry_run: bool = False) -> list[str]:
        """Remove entries for good; returns their ids. UsageError, and nothing is changed, for one that must stay."""

        def changes(head: Head, failed: Failed) -> tuple[Head, list[Change]]:
            return _without(head, failed), [FailureTaken(failed.entry.key)]

        chosen = self._select(selection)
        for failed in chosen:
            self._check_is_known(failed)
        if not dry_run:
            self._change(chosen, changes)
        return [failed.id for failed in chosen]

    def retry(
        self,
        selection: Selection,
        *,
        edited: dict[str, Edited] | None = None,
        at_source: bool = False,
        source: str | None = None,
        dry_run: bool = False,
        now: Callable[[], float] = time.time,
    ) -> list[str]:
        """Put entries back, with all their tries; returns their ids. The run is not finished any more.

        ``at_source``: as new items of the source; of what failed on a failed edge that is the item, not the `Failure`
        around it. What a source keeps goes back to that one; what durable nodes keep goes to the node ``source``, which
        must be named where there are several. UsageError, before anything is changed, for an entry that cannot be put
        back.
        """
        kept = self._select(selection)
        chosen = [_as_given(failed, (edited or {}).get(failed.id), at_source) for failed in kept]
        for before, failed in zip(kept, chosen, strict=True):
            _check_has_item(failed)
            if at_source:
                _check_is_item(failed)
            if at_source or failed is not before:
                self._check_is_known(failed)
        kept_below = [failed for failed in chosen if failed.origin not in self._state.sources]
        to = self._source_for(source) if at_source and (kept_below or source) else ""

        def renew(head: Head, failed: Failed) -> tuple[Head, list[Change]]:
            return _without(head, failed), [FailureKept(_renewed(failed.entry, now()))]

        if chosen and not dry_run:
            self._state.unfinish()
            failpoints.passed("failed.reopened")
            if at_source:
                self._take_over(to, kept_below)
                self._change([failed for failed in chosen if failed.origin in self._state.sources], _bear_again)
            else:
                self._change(chosen, renew)
        return [failed.id for failed in chosen]

    def _select(self, selection: Selection) -> list[Failed]:
        return list(selection.of(self._all()))

    def _all(self) -> Iterator[Failed]:
        names = self._state.origins
        for name, journal in zip(names, self._state.journals(names), strict=True):
            yield from _named(self._state, name, journal)

    def _check_is_known(self, failed: Failed) -> None:
        """A database that is one commit ahead may have its retry; that goes on, whatever becomes of the entry here."""
        if not failed.given_up and self._state.kinds.get(failed.origin.rpartition(".")[0]) == "database":
            raise UsageError(
                f"{failed.id}: it waits for another try, and the database of {failed.origin} may know more of that "
                "than the state directory: let the next run try it, or leave it out with a filter"
            )

    def _source_for(self, wanted: str | None) -> str:
        """The origin that new items are born at: the first of those that read for a node."""
        nodes: dict[str, str] = {}
        for origin, task in zip(self._state.sources, self._state.tasks, strict=False):
            nodes.setdefault(task.rpartition(".")[0], origin)
        if wanted is None and len(nodes) == 1:
            return self._state.sources[0]
        if wanted not in nodes:
            raise UsageError(
                f"the pipeline has {'no source of that name' if wanted else 'several sources'}: say to which one what "
                f"durable nodes keep is to go, one of {', '.join(sorted(nodes))} (--source NAME)"
            )
        return nodes[wanted]

    def _change(self, chosen: list[Failed], changes: Changes) -> None:
        """Origin by origin, so many entries in one commit: a crash leaves the rest as it was."""
        for name, listed in _by_origin(chosen).items():
            with closing(self._state.journal(name)) as journal:
                head = journal.restore().head
                for part in _parts(listed):
                    head, made = _fold(head, part, changes)
                    journal.apply([*made, HeadMoved(head)])

    def _take_over(self, to: str, chosen: list[Failed]) -> None:
        """What durable tasks keep becomes new items of a source; likewise, so many at a time."""
        if not chosen:
            return
        with closing(self._state.journal(to)) as source:
            head = source.restore().head
            for name, listed in _by_origin(chosen).items():
                with closing(self._state.journal(name)) as store:
                    for part in _parts(listed):
                        head, born = _fold(head, part, _bear)
                        moved = FailuresMoved(name, tuple(failed.entry.key for failed in part))
                        take_over(source, store, [*born, HeadMoved(head)], moved)


def _check_is_item(failed: Failed) -> None:
    if failed.is_part_table:
        raise UsageError(
            f"{failed.id}: it is what items of one key came to, which no source can take in: put it back at the node "
            f"that it failed at, {failed.node!r} (without --at-source), or leave it out with a filter"
        )


def _check_has_item(failed: Failed) -> None:
    if failed.entry.failed.payload is None:
        raise UsageError(
            f"{failed.id}: the item could not be kept, so it cannot be tried again; give it with --from, or leave "
            "it out with a filter"
        )


def _by_origin(chosen: list[Failed]) -> dict[str, list[Failed]]:
    found: dict[str, list[Failed]] = {}
    for failed in chosen:
        found.setdefault(failed.origin, []).append(failed)
    return found


def _parts(listed: list[Failed]) -> Iterator[list[Failed]]:
    return (listed[start : start + ENTRIES_PER_COMMIT] for start in range(0, len(listed), ENTRIES_PER_COMMIT))


def _fold(head: Head, part: list[Failed], changes: Changes) -> tuple[Head, list[Change]]:
    """What is to happen to some entries of one origin: the head after it, and all changes."""
    made: list[Change] = []
    for failed in part:
        head, more = changes(head, failed)
        made += more
    return head, made


def _without(head: Head, failed: Failed) -> Head:
    return replace(head, failed=head.failed - failed.given_up)


def _renewed(entry: FailureEntry, now_s: float) -> FailureEntry:
    """Due at once. At least one item of the batch it descends from is pending again."""
    held = entry.held if entry.root == NO_ROOT else max(1, entry.held)
    return replace(entry, attempts=0, held=held, due_s=now_s)


def _bear(head: Head, failed: Failed) -> tuple[Head, list[Change]]:
    """A new item of the source, in a batch of its own."""
    record = BatchRecord(head.next_seq, 1, mark_put_back(failed.entry.failed.payload))
    return replace(head, next_seq=head.next_seq + 1, emitted=head.emitted + 1), [BatchBorn(record)]


def _bear_again(head: Head, failed: Failed) -> tuple[Head, list[Change]]:
    """The same for an entry of the source's own, which goes in the same commit."""
    head, born = _bear(_without(head, failed), failed)
    return head, [FailureTaken(failed.entry.key), *born]


def _as_given(failed: Failed, edited: Edited | None, at_source: bool) -> Failed:
    """With the item that is to be put back."""
    given = failed.entry.failed
    label = _label_of(failed) if edited is not None or at_source else None
    if edited is not None and label is not None and not at_source:
        edited = edited.labelled(label)
    if edited is not None and edited.payload != given.payload:
        return _edit(failed, edited)
    if at_source and given.payload is not None and (given.stage is Stage.FAILED or label is not None):
        return _edit(failed, Edited.of_item(failed.item().item))
    return failed


def _edit(failed: Failed, edited: Edited) -> Failed:
    item = failed.entry.failed._replace(payload=edited.payload, shown=edited.shown, retryable=True)
    return replace(failed, entry=replace(failed.entry, failed=item))
