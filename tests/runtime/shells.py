"""Stores, outboxes, clocks and sources that write down what happens, for the hosts around the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.protocol.dispatch import Dispatch
from consecution.protocol.origin import Change, FailureEntry, Origin, Restored
from consecution.protocol.values import Ack, Acks, Frame, Message, TaskIndex
from consecution.runtime.origin_host import OriginHost, SourceHost, origin_limits, process_codec
from consecution.runtime.wiring import make_dispatch
from consecution.source import Source

SOURCE = TaskIndex(0)


class Diary(list[Any]):
    """What happened, in order, as tuples that begin with a word."""

    def words(self) -> list[str]:
        return [entry[0] for entry in self]

    def all(self, word: str) -> list[Any]:
        return [entry[1] for entry in self if entry[0] == word]


class WritingStore:
    def __init__(self, diary: Diary) -> None:
        self._diary = diary
        self.problem: Exception | None = None

    def apply(self, changes: list[Change]) -> None:
        if self.problem is not None:
            raise self.problem
        self._diary.append(("commit", list(changes)))

    def failures(self, limit: int) -> list[FailureEntry]:
        return []

    def close(self) -> None:
        self._diary.append(("closed store", None))


class WritingOutbox:
    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    def send(self, target: TaskIndex, message: Message) -> None:
        self._diary.append(("send", (target, message)))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Endless(Source):
    """Always has as much as is asked for."""

    def read(self, max_items: int) -> list[Any]:
        return [0] * max_items

    def position(self) -> None:
        return None


class ScriptedSource(Source):
    """Each read gives what the script says next: a list, None, or an exception to raise."""

    def __init__(self, diary: Diary, script: list[Any]) -> None:
        self._diary = diary
        self._script = script
        self._count = 0
        self.asked: list[int] = []

    def __repr__(self) -> str:
        return "ScriptedSource()"

    def open(self, position: Any) -> None:
        self._diary.append(("open", position))

    def read(self, max_items: int) -> list[Any] | None:
        self.asked.append(max_items)
        step = self._script.pop(0) if self._script else []
        if isinstance(step, Exception):
            raise step
        self._count += len(step or [])
        return step  # type: ignore[no-any-return]

    def position(self) -> Any:
        return self._count

    def batch_born(self, seq: int, count: int) -> None:
        self._diary.append(("born", (seq, count)))

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        self._diary.append(("settled", (seq, failed, confirmed)))

    def close(self) -> None:
        self._diary.append(("closed source", None))


class Shell:
    """A source's host on a plan, with everything around it written down."""

    def __init__(
        self, plan: Plan, script: Sequence[Any] = (), *, restored: Restored = Restored(), linger_s: float = 0.0
    ) -> None:
        robust = plan.options.robust
        self.diary = Diary()
        self.clock = Clock()
        self.store = WritingStore(self.diary)
        self.codec, stored = process_codec(robust=robust)
        self.source = ScriptedSource(self.diary, list(script))
        self.origin = Origin(origin_limits(plan.options), restored, self.clock())
        self.dispatch: Dispatch = make_dispatch(plan, SOURCE, self.codec)
        outbox = WritingOutbox(self.diary)
        self.host = OriginHost(
            SOURCE,
            self.origin,
            self.store,
            self.dispatch,
            self.codec,
            outbox,
            stored=stored,
            now=self.clock,
            on_stop=lambda task, entry: self.diary.append(("stop", (task, entry.failed.shown))),
            deciders=plan.deciders(SOURCE),
        )
        self.source_host = SourceHost(
            self.host, self.source, linger_s=linger_s, node_of=lambda task: plan.task(task).node
        )

    def frames(self) -> list[tuple[TaskIndex, Frame]]:
        return [sent for sent in self.diary.all("send") if isinstance(sent[1], Frame)]

    def items(self) -> list[Any]:
        return [item for _, frame in self.frames() for item in self.codec.decode(frame.payload)]

    def acknowledge(self, *failed: Any) -> None:
        """All frames sent so far are done; the failures belong to the last one."""
        sent = [frame for _, frame in self.frames()]
        for frame in sent:
            last = frame is sent[-1]
            ack = Ack(frame.seq, frame.generation, frame.frame_id, 0, failed if last else ())
            self.source_host.receive(Acks(TaskIndex(1), [ack]))
        self.diary[:] = [entry for entry in self.diary if entry[0] != "send"]


def plan_of(*nodes: Any, **options: Any) -> Plan:
    """The plan of these nodes in a row, behind an iterable."""
    top = nodes[0]
    for node in nodes[1:]:
        top = top | node
    return make_plan(top, Options.of(**{"robustness": "robust", **options}), has_iterable=True)
