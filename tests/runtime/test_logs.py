from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from datetime import datetime

import pytest

from consecution.runtime.logs import LONGEST_LINE_BYTES, LogPump, LogStream

Heard = Callable[[], str]


@pytest.fixture
def heard(capsys: pytest.CaptureFixture[str]) -> Heard:
    return lambda: capsys.readouterr().err


def pumped(*chunks: bytes, mark: str = "node.0 17") -> None:
    """What a worker writes, to its end."""
    pump = LogPump()
    readable, writable = os.pipe()
    pump.add(readable, mark)
    for chunk in chunks:
        os.write(writable, chunk)
    os.close(writable)
    pump.close()


def test_every_line_is_marked(heard: Heard) -> None:
    pumped(b"one\ntwo\n")

    assert heard() == "[node.0 17] one\n[node.0 17] two\n"


def test_a_line_may_come_in_pieces_and_need_not_end(heard: Heard) -> None:
    pumped(b"be", b"gun\nand not", b" ended")

    assert heard() == "[node.0 17] begun\n[node.0 17] and not ended\n"


def test_bytes_that_are_no_text_are_shown(heard: Heard) -> None:
    pumped(b"\xff\xfe\n")

    assert heard() == "[node.0 17] \\xff\\xfe\n"


def test_a_line_without_an_end_is_not_gathered_for_ever(heard: Heard) -> None:
    pump = LogPump()
    readable, writable = os.pipe()
    pump.add(readable, "long")
    for _ in range(5):
        os.write(writable, b"x" * (LONGEST_LINE_BYTES // 2))
    os.close(writable)
    pump.close()

    said = heard()
    assert max(map(len, said.splitlines())) <= LONGEST_LINE_BYTES * 2 + len("[long] ")
    assert said.count("x") == LONGEST_LINE_BYTES // 2 * 5


def test_many_writers_share_one_stream(heard: Heard) -> None:
    pump = LogPump()
    writers = []
    for i in range(20):
        readable, writable = os.pipe()
        pump.add(readable, str(i))
        writers.append(writable)
    for i, writable in enumerate(writers):
        os.write(writable, b"here\n" * (i + 1))
        os.close(writable)

    pump.close()

    lines = heard().splitlines()
    assert sorted(lines) == sorted(f"[{i}] here" for i in range(20) for _ in range(i + 1))


def test_a_pipe_that_somebody_else_holds_open_is_not_waited_for(heard: Heard) -> None:
    pump = LogPump()
    readable, writable = os.pipe()
    pump.add(readable, "held")
    os.write(writable, b"last\nwords")

    pump.close()

    assert heard() == "[held] last\n[held] words\n"
    with pytest.raises(BrokenPipeError):
        os.write(writable, b"nobody listens")
    os.close(writable)


@pytest.mark.parametrize("stream", ["closed", "none", "broken"])
def test_whatever_standard_error_is_writers_do_not_wait(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("not now")

    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", {"closed": closed, "none": None, "broken": Broken()}[stream])

    pumped(*[b"x" * 4096 + b"\n"] * 100)


def test_the_supervisor_has_its_say_in_between(heard: Heard) -> None:
    LogStream().say("supervisor", "node.0 died\nand so it was started again")

    assert heard() == "[supervisor] node.0 died\n[supervisor] and so it was started again\n"


def test_as_json_each_line_is_an_object(heard: Heard) -> None:
    stream = LogStream(as_json=True)
    pump = LogPump(stream)
    readable, writable = os.pipe()
    pump.add(readable, "node.0", 17)
    os.write(writable, b'he said "no"\n\xff\n')
    os.close(writable)
    pump.close()
    stream.say("supervisor", "over")

    found = [json.loads(line) for line in heard().splitlines()]
    assert [(line["task"], line["pid"], line["text"]) for line in found] == [
        ("node.0", 17, 'he said "no"'),
        ("node.0", 17, "\\xff"),
        ("supervisor", None, "over"),
    ]
    assert all(datetime.fromisoformat(line["time"]).tzinfo is not None for line in found)
