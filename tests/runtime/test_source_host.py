"""The shell around a source: what is read, and when."""

from __future__ import annotations

from typing import Any

from consecution.protocol.dispatch import Dispatch, SingleEdge
from consecution.protocol.origin import Origin, OriginLimits
from consecution.protocol.values import Ack, Acks, FailedItem, Frame, FrameId, Message, Stage, TaskIndex
from consecution.runtime.origin_host import MemoryStore, OriginHost, SourceHost
from consecution.source import Source
from consecution.transport.codec import LiveCodec

SOURCE, TASK = TaskIndex(0), TaskIndex(1)


class Endless(Source):
    """Always has as much as is asked for."""

    def read(self, max_items: int) -> list[Any]:
        return [0] * max_items

    def position(self) -> None:
        return None


class Outbox:
    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def send(self, target: TaskIndex, message: Message) -> None:
        assert isinstance(message, Frame)
        self.frames.append(message)


def test_new_items_do_not_keep_retries_waiting_for_room() -> None:
    """Under load every place that came free was taken by new items, and a retry waited for the stream's end."""
    now_s, outbox, codec = 0.0, Outbox(), LiveCodec(stores_bytes=False)
    ids = iter(map(FrameId, range(1, 10_000)))
    dispatch = Dispatch(SOURCE, (SingleEdge(0, TASK),), codec, ids.__next__, edge_count=1, max_frame_items=10)
    origin = Origin(OriginLimits(batch_size=1, max_pending=2, retries=1, retry_delay_s=1.0))
    host = OriginHost(SOURCE, origin, MemoryStore(0), dispatch, codec, outbox, stored=codec, now=lambda: now_s)
    source = SourceHost(host, Endless())
    source.open()
    origin.replay(now_s)
    source.turn()

    def answer(*failed: FailedItem) -> None:
        frame = outbox.frames.pop(0)
        source.receive(Acks(TASK, [Ack(frame.seq, frame.generation, frame.frame_id, 0, failed)]))
        source.turn()

    answer(FailedItem(TASK, Stage.PROCESS, [7], "ValueError: no", "", True, "7"))
    now_s = 2.0
    answer()

    assert [frame.payload for frame in outbox.frames] == [[0], [7]]
