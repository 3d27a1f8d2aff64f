"""Items that clients send by HTTP, each request answered once its items are in the journal.

The rules it keeps:

1. Whoever can reach it may put items in, unless there is a token: so it listens to this machine alone, until both who
   listens and who may come are said.
2. A page in somebody's browser must not get in: it can send to this machine, but not with these content types unless it
   is asked first (and it is not allowed), and not under this host's name.
3. Everything a client may make large or slow has a limit: connections, heads, bodies, waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consecution.errors import SourceError, UsageError, reason_of
from consecution.report import Failure
from consecution.source import Note, Source
from consecution.sources.http_server import HttpServer, import_http
from consecution.sources.json_values import DECODER
from consecution.sources.listening import check_port, check_reach, is_loopback, listen_tcp
from consecution.sources.taken_keys import TakenKeys, digest
from consecution.sources.waiting_room import Answer, Request, WaitingRoom

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

KIND = "http"
JSON_TYPES = ("application/json",)
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
LONGEST_WAIT_MS = 500
"""With ``may_block``: how long a read waits for an item before it lets the caller look at other things."""
MOST_KEY_CHARACTERS = 255
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class HttpSource(Source):
    """JSON values from ``POST /``: one, a list of them, or one a line.

    A request is answered with 202 when its items are in the journal; with ``?wait=true`` with 200 when they are
    completely processed, or 500 and what has failed. docs/sources.md lists the other answers. ``port`` 0 takes any that
    is free; `address` tells which.

    Who sends has to give one of the tokens, one a line, of ``token_file`` or of the environment's variable
    ``token_env``, if there is either; without, another ``host`` than this machine is refused unless ``allow_anyone``.
    ``max_*`` bound what is in memory; ``*_within_s`` are seconds that a body may take to come, items to be taken, and
    items to be complete. ``keep_keys`` keys of requests are remembered, each for ``keep_keys_s`` seconds.

    UsageError for options that make no sense; MissingExtraError without starlette and uvicorn; SourceError from
    ``open`` where the address cannot be had, or there is no token where there should be.
    """

    is_awaited = True

    def __init__(
        self,
        port: int = 8080,
        host: str = "127.0.0.1",
        *,
        token_env: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        allow_anyone: bool = False,
        max_body_bytes: int = 4 << 20,
        max_waiting_items: int = 10_000,
        max_waiting_bytes: int = 16 << 20,
        max_connections: int = 1000,
        body_within_s: float = 30.0,
        taken_within_s: float = 10.0,
        complete_within_s: float = 60.0,
        keep_keys: int = 100_000,
        keep_keys_s: float = 24 * 3600.0,
    ) -> None:
        import_http(KIND)
        if token_env is not None and token_file is not None:
            raise UsageError("Producer('http'): token_env and token_file: give one of them")
        check_port(KIND, port)
        limits = {
            "max_body_bytes": max_body_bytes,
            "max_waiting_items": max_waiting_items,
            "max_waiting_bytes": max_waiting_bytes,
            "max_connections": max_connections,
            "body_within_s": body_within_s,
            "taken_within_s": taken_within_s,
            "complete_within_s": complete_within_s,
            "keep_keys": keep_keys,
            "keep_keys_s": keep_keys_s,
        }
        for option, limit in limits.items():
            if not limit > 0:
                raise UsageError(f"Producer('http', {option}={limit!r}): expected more than 0")
        self._guarded = token_env is not None or token_file is not None
        check_reach(
            KIND,
            host,
            allowed=self._guarded or allow_anyone,
            remedy="ask for a token (token_file=... or token_env=...), or say that anybody may (allow_anyone=True)",
        )
        self._host = host
        self._port = port
        self._token_env = token_env
        self._token_file = token_file
        self._checks_host = not self._guarded and not allow_anyone and is_loopback(host)
        self._max_body_bytes = max_body_bytes
        self._max_waiting_items = max_waiting_items
        self._max_waiting_bytes = max_waiting_bytes
        self._max_connections = max_connections
        self._body_within_s = body_within_s
        self._taken_within_s = taken_within_s
        self._complete_within_s = complete_within_s
        self._keep_keys = keep_keys
        self._keep_keys_s = keep_keys_s
        self._notes: Sequence[tuple[int, bytes]] = ()
        self._count = 0
        self._room: WaitingRoom | None = None
        self._server: HttpServer | None = None
        self.address = None
        """Where it listens, while it is open."""

    def __repr__(self) -> str:
        return f"HttpSource({self._host}:{self._port})"

    # -- the contract ----------------------------------------------------------------------------

    def recall(self, notes: Sequence[tuple[int, bytes]]) -> None:
        self._notes = notes

    def open(self, position: Any) -> None:
        self._count = 0 if position is None else int(position)
        tokens = self._read_tokens()
        keys = TakenKeys(self._keep_keys, self._keep_keys_s)
        keys.recall(self._notes)
        self._notes = ()
        listener = listen_tcp(KIND, self._host, self._port)
        self.address = listener.getsockname()[:2]
        room = WaitingRoom(
            keys, self._deliver, time.time, most_items=self._max_waiting_items, most_bytes=self._max_waiting_bytes
        )
        door = _Door(
            room,
            tokens=tokens,
            local_names=(*LOCAL_NAMES, self._host) if self._checks_host else (),
            max_body_bytes=self._max_body_bytes,
            max_waiting_bytes=self._max_waiting_bytes,
            body_within_s=self._body_within_s,
        )
        self._room = room
        self._server = HttpServer(
            door.app(),
            listener,
            max_connections=self._max_connections,
            sweep=lambda: room.expire(self._taken_within_s, self._complete_within_s),
            stopping=door.close,
        )
        self._server.start()

    def _read_tokens(self) -> list[bytes]:
        """SourceError where there should be tokens and are none: it must not be open to all then."""
        if not self._guarded:
            return []
        if self._token_file is not None:
            where = f"the file {os.fspath(self._token_file)}"
            try:
                text = Path(self._token_file).read_text()
            except (OSError, UnicodeDecodeError) as error:
                what = f"{where}, which should hold the tokens, cannot be read: {reason_of(error)}"
                raise SourceError(f"http: {what}; mend that, and run again") from error
        else:
            where = f"the variable {self._token_env}"
            text = os.environ.get(str(self._token_env), "")
        tokens = [line.strip().encode() for line in text.splitlines() if line.strip()]
        if not tokens:
            raise SourceError(f"http: {where} holds no token: put one there, one a line where there are several")
        return tokens

    def _deliver(self, answers: list[tuple[Request, Answer]]) -> None:
        assert self._server is not None
        self._server.call(WaitingRoom.hand_out, answers)

    def read(self, max_items: int) -> list[Any]:
        assert self._room is not None, "read before open"
        assert self._server is not None
        if self._server.problem is not None:
            raise SourceError(f"http: the server has ended: {self._server.problem!r}") from self._server.problem
        items, self.cut = self._room.take(max_items)
        if not items and not self.cut and self.may_block:
            _wait_for(self._room.fileno())
            items, self.cut = self._room.take(max_items)
        self._count += len(items)
        return items

    def position(self) -> int:
        return self._count

    def fileno(self) -> int | None:
        return None if self._room is None else self._room.fileno()

    def batch_born(self, seq: int, count: int) -> None:
        if self._room is not None:
            self._room.born(seq, count)

    def take_note(self, seq: int) -> Note | None:
        return None if self._room is None else self._room.note(seq)

    def batch_journalled(self, seq: int) -> None:
        if self._room is not None:
            self._room.journalled(seq)

    def items_failed(self, seq: int, failures: Sequence[Failure]) -> None:
        if self._room is not None:
            self._room.failed(seq, failures)

    def batch_settled(self, seq: int, failed: int, confirmed: bool) -> None:
        if self._room is not None:
            self._room.settled(seq, failed, confirmed=confirmed)

    def close(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.close()
        if self._server is not None:
            self._server.stop()
            self._server = None
        self.address = None


def _wait_for(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(LONGEST_WAIT_MS)


# -- what clients may do ---------------------------------------------------------------------------


class _RefusedError(Exception):
    """A request that is not let in, and what it is told."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None, **says: Any) -> None:
        super().__init__(error)
        self.answer = Answer(status, {"error": error, **says})
        self.headers = headers or {}


class _Door:
    """Looks at each request, receives it, and lets it into the waiting room. All of it runs in the server's thread."""

    def __init__(
        self,
        room: WaitingRoom,
        *,
        tokens: list[bytes],
        local_names: tuple[str, ...],
        max_body_bytes: int,
        max_waiting_bytes: int,
        body_within_s: float,
    ) -> None:
        self._room = room
        self._tokens = tokens
        self._local_names = local_names
        self._max_body_bytes = max_body_bytes
        self._max_waiting_bytes = max_waiting_bytes
        self._body_within_s = body_within_s
        self._receiving: set[asyncio.Timeout] = set()
        self._receiving_bytes = 0
        self._closed = False

    def app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        return Starlette(
            routes=[Route("/", self._post, methods=["POST"]), Route("/health", self._health, methods=["GET"])],
            exception_handlers={HTTPException: _no_such_thing},
        )

    def close(self) -> None:
        """Whose body is still on its way is told that we stop."""
        self._closed = True
        for limit in self._receiving:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _health(self, request: HttpRequest) -> Response:
        """200 while items are taken, 503 where they have waited too long."""
        stalled = self._room.is_stalled
        says = {"status": "stalled" if stalled else "taking", "waiting": self._room.waiting_items}
        return _respond(Answer(503 if stalled else 200, says))

    async def _post(self, request: HttpRequest) -> Response:
        try:
            answer = await self._let_in(request)
        except _RefusedError as refused:
            return _respond(refused.answer, refused.headers)
        return _respond(answer)

    async def _let_in(self, request: HttpRequest) -> Answer:
        self._check_sender(request)
        is_lines = _is_lines(request.headers.get("content-type"))
        _check_encoding(request.headers.get("content-encoding"))
        waits, key = _wants_to_wait(request.query_params.get("wait")), _key_of(request.headers.get("idempotency-key"))
        body = await self._receive(request)
        items = parse_lines(body) if is_lines else parse_json(body)
        heard: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(answer: Answer) -> None:
            if not heard.done():
                heard.set_result(answer)

        made = Request(
            items,
            reply,
            size_bytes=len(body),
            waits=waits,
            key=None if key is None else digest(key),
            body=b"" if key is None else digest(body),
        )
        return self._room.enter(made) or await heard

    def _check_sender(self, request: HttpRequest) -> None:
        if self._tokens:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            token = given.strip().encode()
            known = [hmac.compare_digest(token, one) for one in self._tokens]
            if scheme.lower() != "bearer" or not any(known):
                raise _RefusedError(
                    401,
                    "a token is needed: send the header Authorization: Bearer TOKEN",
                    {"www-authenticate": "Bearer"},
                )
        elif self._local_names:
            name = _without_port(request.headers.get("host", ""))
            if name not in self._local_names:
                raise _RefusedError(
                    403, f"this is not {name!r}: ask for localhost, or let the pipeline ask for a token"
                )

    async def _receive(self, request: HttpRequest) -> bytes:
        try:
            return await self._receive_body(request)
        except _RefusedError as refused:
            if refused.answer.status in (413, 429) and request.headers.get("connection", "").lower() == "close":
                await self._discard_rest(request)
            raise

    async def _discard_rest(self, request: HttpRequest) -> None:
        """After this answer the connection is closed: while more comes, the client would be cut off before it reads."""
        from starlette.requests import ClientDisconnect

        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(self._body_within_s) as limit:
                self._receiving.add(limit)
                try:
                    async for _ in request.stream():
                        pass
                finally:
                    self._receiving.discard(limit)

    async def _receive_body(self, request: HttpRequest) -> bytes:
        from starlette.requests import ClientDisconnect

        length = request.headers.get("content-length", "0")
        self._check_size(int(length) if length.isdecimal() else 0)
        chunks: list[bytes] = []
        size_bytes = 0
        try:
            async with asyncio.timeout(self._body_within_s) as limit:
                self._receiving.add(limit)
                async for chunk in request.stream():
                    chunks.append(chunk)
                    size_bytes += len(chunk)
                    self._receiving_bytes += len(chunk)
                    self._check_size(size_bytes)
                    self._check_room()
        except TimeoutError:
            if self._closed:
                raise _RefusedError(
                    503, "the pipeline is being stopped, nothing was taken: send it again later"
                ) from None
            raise _RefusedError(
                408, f"the body did not come within {self._body_within_s:g} s", {"connection": "close"}
            ) from None
        except ClientDisconnect:
            raise _RefusedError(400, "the client has gone before the whole body had come") from None
        finally:
            self._receiving.discard(limit)
            self._receiving_bytes -= size_bytes
        return b"".join(chunks)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_body_bytes:
            # The connection stays: closed while more comes, the client might never read this.
            raise _RefusedError(413, f"the body has more than {self._max_body_bytes} bytes: send fewer items at once")

    def _check_room(self) -> None:
        """Bodies that are on their way take room, too; whoever comes alone finds it."""
        held_bytes = self._receiving_bytes + self._room.waiting_bytes
        if held_bytes > max(self._max_waiting_bytes, self._max_body_bytes):
            raise _RefusedError(
                429,
                f"{held_bytes} bytes wait to be taken already, nothing was taken: send it again later",
                {"retry-after": "1"},
            )


async def _no_such_thing(request: HttpRequest, error: Any) -> Response:
    says = f"{request.method} {request.url.path}: {error.detail}; there is POST / for items, and GET /health"
    return _respond(Answer(error.status_code, {"error": says}), error.headers)


def _respond(answer: Answer, headers: Any = None) -> Response:
    from starlette.responses import Response

    told = dict(headers or {})
    if answer.retry_after_s is not None:
        told["retry-after"] = str(answer.retry_after_s)
    content = json.dumps(answer.says).encode()
    return Response(content, answer.status, told, "application/json")


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()


# -- what a request is made of ---------------------------------------------------------------------


def _is_lines(content_type: str | None) -> bool:
    """Whether the body is one value a line.

    A content type is asked for: without, or with one that a form could have, a page in a browser could send it.
    """
    name, _, parameters = (content_type or "").partition(";")
    name, parameters = name.strip().lower(), parameters.strip().lower().replace('"', "")
    if name not in (*JSON_TYPES, *NDJSON_TYPES):
        found = f"found {name}" if name else "there is none"
        raise _RefusedError(
            415, f"expected Content-Type: {JSON_TYPES[0]}, or {NDJSON_TYPES[0]} for one value a line; {found}"
        )
    if parameters not in ("", "charset=utf-8", "charset=utf8"):
        raise _RefusedError(415, f"expected UTF-8, found {parameters}")
    return name in NDJSON_TYPES


def _check_encoding(content_encoding: str | None) -> None:
    if content_encoding not in (None, "", "identity"):
        raise _RefusedError(415, f"expected no Content-Encoding, found {content_encoding}")


def _wants_to_wait(wait: str | None) -> bool:
    if wait not in (None, "true", "false"):
        raise _RefusedError(400, f"wait={wait}: expected true or false")
    return wait == "true"


def _key_of(header: str | None) -> bytes | None:
    if header is None:
        return None
    if not header.strip() or len(header) > MOST_KEY_CHARACTERS:
        raise _RefusedError(400, f"expected an Idempotency-Key of 1 to {MOST_KEY_CHARACTERS} characters")
    return header.strip().encode()


def parse_json(body: bytes) -> list[Any]:
    """The items of a list, or the one value that it is."""
    text = _decode(body)
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _bad(error, 1) from None
    return value if isinstance(value, list) else [value]


def parse_lines(body: bytes) -> list[Any]:
    """One value a line; empty lines are none."""
    items = []
    for number, line in enumerate(_decode(body).split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            items.append(DECODER.decode(line))
        except (ValueError, RecursionError) as error:
            raise _bad(error, number) from None
    return items


def _decode(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise _RefusedError(400, f"line {line}: byte {error.start} of the body is no UTF-8", line=line) from None


def _bad(error: Exception, line: int) -> _RefusedError:
    if isinstance(error, json.JSONDecodeError):
        line += error.lineno - 1
        return _RefusedError(400, f"line {line}: expected JSON ({error.msg} at column {error.colno})", line=line)
    problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return _RefusedError(400, f"line {line}: expected JSON ({problem})", line=line)
