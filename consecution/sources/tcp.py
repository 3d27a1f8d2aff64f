"""Lines that clients send over TCP, or over a Unix socket.

The rules it keeps:

1. No threads, and nothing read ahead: a client is read only when its lines are taken. Else they wait there.
2. At most one block, of one client, is here as records; of each other client no more than the line that it has begun.
3. A line counts when its newline has come. What a client does not finish, or makes too long, fails alone.
4. A page in somebody's browser can connect to this machine, and post lines: who speaks HTTP is shown out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import socket
from collections import deque
from pathlib import Path
from typing import Any

from consecution.errors import SourceError, UsageError, reason_of
from consecution.source import Source
from consecution.sources.listening import check_port, check_reach, listen_tcp, listen_unix
from consecution.sources.records import BLOCK_BYTES, NOTHING, RECORDS, Place, RecordFormat, reject

KIND = "tcp"
FORMATS = ("lines", "ndjson")
LONGEST_WAIT_S = 0.5
"""With ``may_block``: how long a read waits for a line before it lets the caller look at other things."""
MOST_TURNS = 64
"""So many blocks without any item (a long line, empty ones) are looked at in one read."""
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
LAST_WORDS_BLOCKS = 256
"""At the end: so much of what a client has sent is looked at no more, so that it can still read what it is told."""

HTTP_REQUEST = re.compile(rb"[A-Z]+ \S+ HTTP/\d")
LONG_HTTP_REQUEST = re.compile(rb"[A-Z]+ \S+\Z")
"""The beginning of one whose first line is longer than a line may be."""
NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"Producer('tcp') takes lines, not HTTP; Producer('http') does\n"
)


class TcpSource(Source):
    """The lines that clients send, as text without their newlines, or as JSON values (``format="ndjson"``).

    It listens at ``port`` of ``host``, or at the Unix socket ``path``, which is its owner's alone. ``port`` 0 takes any
    that is free; `address` tells which. Another ``host`` than this machine is refused unless ``allow_anyone``.

    Each client's lines keep their order. ``max_clients`` are served at a time, others wait until one has gone. A line
    of more than ``max_line_bytes``, or whose client goes away before its newline, is `Rejected`, as a line is that is
    no JSON; the encoding is as in `consecution.sources.records.RecordFormat`. In memory are at most
    ``max_clients * max_line_bytes`` and a block.

    With ``acknowledge`` each client is told, as a number on a line, how many of the lines it has sent are in the
    journal. What it was not told of may be lost with a crash, or may not: it sends that again when it connects anew.

    The position is the number of items. UsageError for options that make no sense; SourceError from ``open`` where the
    address cannot be had.
    """

    rejects = True

    def __init__(
        self,
        port: int | None = None,
        host: str = "127.0.0.1",
        *,
        path: str | os.PathLike[str] | None = None,
        format: str = "lines",
        encoding: str = "utf-8",
        acknowledge: bool = False,
        allow_anyone: bool = False,
        max_line_bytes: int = 1 << 20,
        max_clients: int = 100,
    ) -> None:
        if (port is None) == (path is None):
            raise UsageError("Producer('tcp'): give port=..., or path=... for a Unix socket")
        if port is not None:
            check_port(KIND, port)
        if format not in FORMATS:
            raise UsageError(f"Producer('tcp', format={format!r}): expected one of {', '.join(map(repr, FORMATS))}")
        if max_line_bytes < 1 or max_clients < 1:
            raise UsageError("Producer('tcp'): max_line_bytes and max_clients must be at least 1")
        check_reach(KIND, host, allowed=allow_anyone, remedy="say that anybody may (allow_anyone=True)")
        self._port = port
        self._host = host
        self._path = None if path is None else Path(path)
        self._form = RecordFormat(format, encoding=encoding)
        self._acknowledge = self.is_awaited = acknowledge
        self._max_line_bytes = max_line_bytes
        self._max_clients = max_clients
        self._count = 0
        self._hall: _Hall | None = None
        self.address = None
        """Where it listens, while it is open: (host, port), or the path."""

    def __repr__(self) -> str:
        return f"TcpSource({self._path or f'{self._host}:{self._port}'})"

    # -- the contract ----------------------------------------------------------------------------

    def open(self, position: Any) -> None:
        self._count = 0 if position is None else int(position)
        if self._path is not None:
            listener = listen_unix(KIND, self._path)
            self.address = os.fspath(self._path)
        else:
            assert self._port is not None
            listener = listen_tcp(KIND, self._host, self._port)
            self.address = listener.getsockname()[:2]
        self._hall = _Hall(
            listener,
            self._form,
            acknowledge=self._acknowledge,
            max_line_bytes=self._max_line_bytes,
            max_clients=self._max_clients,
        )

    def read(self, max_items: int) -> list[Any]:
        assert self._hall is not None, "read before open"
        items = self._hall.take(max_items)
        if not items and self.may_block:
            self._hall.wait(LONGEST_WAIT_S)
            items = self._hall.take(max_items)
        self._count += len(items)
        return items

    def position(self) -> int:
        return self._count

    def fileno(self) -> int | None:
        return None if self._hall is None else self._hall.fileno()

    def batch_born(self, seq: int, count: int) -> None:
        if self._hall is not None and self._acknowledge:
            self._hall.born(seq, count)

    def batch_journalled(self, seq: int) -> None:
        if self._hall is not None and self._acknowledge:
            self._hall.journalled(seq)

    def close(self) -> None:
        hall, self._hall, self.address = self._hall, None, None
        if hall is None:
            return
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        hall.close()


class _Hall:
    """The clients that are connected, each read when it is its turn."""

    def __init__(
        self, listener: socket.socket, form: RecordFormat, *, acknowledge: bool, max_line_bytes: int, max_clients: int
    ) -> None:
        self._listener = listener
        self._form = form
        self._acknowledge = acknowledge
        self._max_line_bytes = max_line_bytes
        self._max_clients = max_clients
        self._selector = selectors.DefaultSelector()
        self._is_listening = False
        self._clients: set[_Client] = set()
        self._ready: deque[_Client] = deque()
        self._current: _Client | None = None
        self._unborn: deque[tuple[_Client, int, int]] = deque()
        self._batches: dict[int, dict[_Client, int]] = {}
        self._listen(True)

    def fileno(self) -> int:
        """Readable while somebody has sent something, or wants to come in."""
        descriptor: int = self._selector.fileno()
        return descriptor

    def wait(self, timeout_s: float) -> None:
        """Until there is something to do, or ``timeout_s`` have passed."""
        self._selector.select(timeout_s)

    # -- who is there ----------------------------------------------------------------------------

    def _listen(self, wanted: bool) -> None:
        """While there are too many clients, others wait at the door."""
        if wanted and not self._is_listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._is_listening and not wanted:
            self._selector.unregister(self._listener)
        self._is_listening = wanted

    def _let_in(self) -> None:
        while len(self._clients) < self._max_clients:
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    return  # Who came has gone already.
                if not self._clients:
                    what = f"no client can be let in: {reason_of(error)}; raise the limits (ulimit -n)"
                    raise SourceError(f"tcp: {what}") from error
                break
            self._greet(connection, address)
        self._listen(False)

    def _greet(self, connection: socket.socket, address: Any) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a client"
        client = _Client(connection, name, self._form, self._max_line_bytes, acknowledge=self._acknowledge)
        self._clients.add(client)
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        """Hear of what it sends, and of room for what it is to be told. Who does neither any more is gone."""
        events = (selectors.EVENT_READ if client.is_sending else 0) | (selectors.EVENT_WRITE if client.unsent else 0)
        if events and client.watched != events:
            change = self._selector.modify if client.watched else self._selector.register
            change(client.connection, events, client)
        elif client.watched and not events:
            self._selector.unregister(client.connection)
        client.watched = events
        if not client.is_sending and not client.is_waiting:
            self._clients.discard(client)
            client.send_off()
            self._listen(True)

    def close(self) -> None:
        self._listener.close()
        self._selector.close()
        for client in self._clients:
            client.send_off()

    # -- taking ----------------------------------------------------------------------------------

    def take(self, max_items: int) -> list[Any]:
        """Up to so many items of what has come."""
        items: list[Any] = []
        for _ in range(MOST_TURNS):
            if self._current is None:
                self._current = self._next_ready()
            client = self._current
            if client is None:
                break
            found = client.take(max_items - len(items))
            items += found
            if self._acknowledge:
                self._note(client, len(found))
            if client.has_records:
                break
            self._current = None
            self._watch(client)
            if len(items) == max_items:
                break
        return items

    def _next_ready(self) -> _Client | None:
        """Whose turn it is, with what it has sent. None where nobody has sent anything."""
        if not self._ready:
            self._look()
        if not self._ready:
            return None
        client = self._ready.popleft()
        client.receive()
        return client

    def _look(self) -> None:
        for key, events in self._selector.select(0):
            client = key.data
            if client is None:
                self._let_in()
                continue
            if events & selectors.EVENT_WRITE:
                self._tell(client)
            if client.is_sending and events & selectors.EVENT_READ:
                self._ready.append(client)

    # -- acknowledging ---------------------------------------------------------------------------

    def _note(self, client: _Client, count: int) -> None:
        if count:
            client.noted = client.place.line
            self._unborn.append((client, count, client.place.line))
        else:
            self._confirm(client, client.journalled)

    def born(self, seq: int, count: int) -> None:
        """The oldest ``count`` items taken are batch ``seq``."""
        lines = self._batches[seq] = {}
        while count:
            client, part, line = self._unborn.popleft()
            count -= part
            lines[client] = line
        assert not count, "a batch is made of whole reads"

    def journalled(self, seq: int) -> None:
        """Batch ``seq`` is in the journal."""
        for client, line in self._batches.pop(seq).items():
            self._confirm(client, line)

    def _confirm(self, client: _Client, line: int) -> None:
        """The lines up to this one are in the journal; with the last item, the empty lines behind it are done, too."""
        client.journalled = line if line < client.noted else client.place.line
        self._tell(client)

    def _tell(self, client: _Client) -> None:
        if client in self._clients:
            client.tell()
            self._watch(client)


class _Client:
    """A connection, and the lines that have come by it and were not taken."""

    def __init__(
        self, connection: socket.socket, name: str, form: RecordFormat, max_line_bytes: int, *, acknowledge: bool
    ) -> None:
        self.connection = connection
        self.place = Place()
        """How far its lines were taken."""
        self.watched = 0
        self.is_sending = True
        self.noted = 0
        """Of its lines, the last one that has become an item."""
        self.journalled = 0
        self.unsent = b""
        self._name = name
        self._form = form
        self._max_line_bytes = max_line_bytes
        self._acknowledge = acknowledge
        self._told = 0
        self._begun = bytearray()
        self._begun_bytes = 0
        self._rejected: list[Any] = []
        self._records = NOTHING

    # -- what it sends ---------------------------------------------------------------------------

    def receive(self) -> None:
        """Take in a block, once all before it was taken."""
        try:
            block = self.connection.recv(min(BLOCK_BYTES, self._max_line_bytes))  # So only its first line is too long.
        except BlockingIOError:
            return
        except OSError:
            block = b""
        if block:
            self._feed(block)
            return
        self.is_sending = False
        if self._begun and not self._acknowledge:  # Whoever is told what is taken knows that this is not.
            self._reject("the connection has ended before the newline")

    def _feed(self, block: bytes) -> None:
        newline = block.find(b"\n")
        if newline >= 0 and self._begun_bytes + newline > self._max_line_bytes:
            self._begin(block[:newline])
            if self._speaks_http(LONG_HTTP_REQUEST, self._begun):
                return
            self._reject(f"it has more than {self._max_line_bytes} bytes (max_line_bytes), and only so many are here")
            block = block[newline + 1 :]
        head, ended, tail = block.rpartition(b"\n")
        if ended:
            self._parse(bytes(self._begun) + head + ended)
        self._begin(tail)

    def _begin(self, tail: bytes) -> None:
        self._begun += tail[: self._max_line_bytes - len(self._begun)]
        self._begun_bytes += len(tail)

    def _parse(self, lines: bytes) -> None:
        self._begun, self._begun_bytes = bytearray(), 0
        if not self._speaks_http(HTTP_REQUEST, lines):
            self._records, _ = self._form.parse(lines, self.place, self._name, final=False)

    def _speaks_http(self, request: re.Pattern[bytes], lines: bytes | bytearray) -> bool:
        """Whether its first line is a request; then it is shown out. No browser gets at a Unix socket."""
        if self.place.line or self.connection.family == socket.AF_UNIX or not request.match(lines):
            return False
        self.is_sending, self.unsent, self._acknowledge = False, NO_HTTP, False
        self._send()
        return True

    def _reject(self, problem: str) -> None:
        text = self._begun.decode(self._form.encoding, "surrogateescape")
        self._begun, self._begun_bytes = bytearray(), 0
        self.place.line += 1
        self._rejected = [reject(text, f"{self._name}, line {self.place.line}", problem, RECORDS[self._form.format])]

    @property
    def has_records(self) -> bool:
        return bool(self._records)

    def take(self, max_items: int) -> list[Any]:
        """Up to so many of its records; the place moves behind them."""
        rejected, self._rejected = self._rejected, []
        return rejected + self._records.take(max_items - len(rejected), self.place)

    # -- what it is told -------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """There is something that it is to be told, now or later."""
        return bool(self.unsent) or (self._acknowledge and self._told < self.place.line)

    def tell(self) -> None:
        """Say how many of its lines are journalled. What it has not read of it yet does not grow."""
        self._send()
        if self._acknowledge and not self.unsent and self._told < self.journalled:
            self._told = self.journalled
            self.unsent = b"%d\n" % self._told
            self._send()

    def _send(self) -> None:
        try:
            while self.unsent:
                self.unsent = self.unsent[self.connection.send(self.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.unsent, self._acknowledge = b"", False

    def send_off(self) -> None:
        """End the connection. Were bytes of the client left unread, the kernel could take back what it was told."""
        self.tell()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            for _ in range(LAST_WORDS_BLOCKS):
                if not self.connection.recv(BLOCK_BYTES):
                    break
        self.connection.close()
