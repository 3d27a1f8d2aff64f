"""The byte layout of what travels between tasks.

Every message is one ZeroMQ multipart message. The first part is a msgpack array whose first element
is the kind and whose second is the task it goes to; a frame's payload is a second part of its own, or as many as
``pieces`` says where some of it is large, so that it is never copied into a header::

    frame    [0, target, origin, seq, generation, [path...], frame_id, low, sender, stage, credited, sent_s,
              load_s or nil, pieces] | payload
    acks     [1, target, sender, [[seq, generation, xor, produced_bytes, [failed...], staged, load_s], ...]]
    credits  [2, target, replica, count]
    gos      [3, target, origin, [[seq, generation, after, low, xor], ...]]
    confirms [4, target, sender, [[seq, load_s], ...]]

    failed   [task, stage, payload, error, traceback, retryable, shown, treatment]
    treatment  [action, retries or nil, delay_s or nil]

Integers are msgpack integers (64 bit ids and XORs unsigned), texts UTF-8 with surrogates passed
through. `decode_message` raises `FrameError` and nothing else, whatever bytes it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from consecution.errors import FrameError, text_of
from consecution.protocol.values import (
    Ack,
    Acks,
    Action,
    Confirm,
    Confirms,
    CreditReturn,
    FailedItem,
    Frame,
    FrameId,
    Go,
    Gos,
    Message,
    Stage,
    TaskIndex,
    Treatment,
)
from consecution.transport.pieces import Pieces, pieces_of

FRAME, ACKS, CREDITS, GOS, CONFIRMS = range(5)


def encode_message(target: TaskIndex, message: Message) -> list[Any]:
    """The parts of a message to ``target``, ready for ``send_multipart``. A frame's payload is bytes or `Pieces`."""
    if isinstance(message, Frame):
        pieces = pieces_of(message.payload)
        header = (
            FRAME,
            target,
            message.origin,
            message.seq,
            message.generation,
            message.path,
            message.frame_id,
            message.low,
            message.sender,
            int(message.stage),
            message.credited,
            message.sent_s,
            message.load_s if message.whole else None,
            len(pieces),
        )
        return [msgpack.packb(header), *pieces]
    if isinstance(message, Acks):
        acks = [(a.seq, a.generation, a.xor, a.produced_bytes, a.failed, a.staged, a.load_s) for a in message.acks]
        return [msgpack.packb((ACKS, target, message.sender, acks), unicode_errors="surrogatepass")]
    if isinstance(message, Gos):
        return [msgpack.packb((GOS, target, message.origin, message.gos))]
    if isinstance(message, Confirms):
        return [msgpack.packb((CONFIRMS, target, message.sender, message.confirms))]
    return [msgpack.packb((CREDITS, target, message.replica, message.count))]


def decode_message(parts: Sequence[Any]) -> tuple[TaskIndex, Message]:
    """The message in these parts, and the task it goes to."""
    try:
        header = msgpack.unpackb(parts[0], use_list=True, unicode_errors="surrogatepass")
        kind, target, *fields = header
        _check_numbers(target)
        return TaskIndex(target), _DECODERS[kind](fields, parts)
    except Exception as error:
        raise FrameError(
            f"not a frame: {len(parts)} parts, {text_of(error)}; the sender does not speak this version's wire format"
        ) from error


def _decode_frame(fields: list[Any], parts: Sequence[Any]) -> Frame:
    origin, seq, generation, path, frame_id, low, sender, stage, credited, sent_s, load_s, count = fields
    _check_numbers(origin, seq, generation, frame_id, low, sender, *path)
    _, *pieces = parts
    if len(pieces) != count:
        raise ValueError(f"expected {count} parts of a payload, found {len(pieces)}")
    payload = pieces[0] if count == 1 else Pieces(pieces)
    return Frame(
        TaskIndex(origin),
        seq,
        generation,
        tuple(path),
        FrameId(frame_id),
        low,
        TaskIndex(sender),
        Stage(stage),
        bool(credited),
        payload,
        float(sent_s),
        load_s is not None,
        float(load_s or 0.0),
    )


def _decode_acks(fields: list[Any], parts: Sequence[Any]) -> Acks:
    sender, listed = fields
    _check_numbers(sender)
    acks = []
    for seq, generation, xor, produced_bytes, failed, staged, load_s in listed:
        _check_numbers(seq, generation, xor, produced_bytes)
        failures = tuple(decode_failed(f) for f in failed)
        acks.append(Ack(seq, generation, xor, produced_bytes, failures, bool(staged), float(load_s)))
    (_,) = parts
    return Acks(TaskIndex(sender), acks)


def decode_failed(fields: Sequence[Any]) -> FailedItem:
    """A failed item from its msgpack array; ValueError or TypeError if it is none."""
    task, stage, payload, error, traceback, retryable, shown, (action, retries, delay_s) = fields
    _check_numbers(task, *(() if retries is None else (retries,)))
    return FailedItem(
        TaskIndex(task),
        Stage(stage),
        payload,
        str(error),
        str(traceback),
        bool(retryable),
        str(shown),
        Treatment(Action(action), retries, None if delay_s is None else float(delay_s)),
    )


def _decode_credits(fields: list[Any], parts: Sequence[Any]) -> CreditReturn:
    replica, count = fields
    _check_numbers(replica, count)
    (_,) = parts
    return CreditReturn(TaskIndex(replica), count)


def _decode_gos(fields: list[Any], parts: Sequence[Any]) -> Gos:
    origin, listed = fields
    gos = []
    for seq, generation, after, low, xor in listed:
        _check_numbers(seq, generation, after + 1, low, xor)
        gos.append(Go(seq, generation, after, low, xor))
    _check_numbers(origin)
    (_,) = parts
    return Gos(TaskIndex(origin), gos)


def _decode_confirms(fields: list[Any], parts: Sequence[Any]) -> Confirms:
    sender, listed = fields
    confirms = [Confirm(seq, float(load_s)) for seq, load_s in listed]
    _check_numbers(sender, *(confirm.seq for confirm in confirms))
    (_,) = parts
    return Confirms(TaskIndex(sender), confirms)


def _check_numbers(*numbers: Any) -> None:
    for number in numbers:
        if type(number) is not int or number < 0:
            raise ValueError(f"expected a number of 0 or more, found {number!r}")


_Decoder = Callable[[list[Any], Sequence[Any]], Message]
_DECODERS: dict[int, _Decoder] = {
    FRAME: _decode_frame,
    ACKS: _decode_acks,
    CREDITS: _decode_credits,
    GOS: _decode_gos,
    CONFIRMS: _decode_confirms,
}
