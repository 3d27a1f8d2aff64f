"""An ASGI application served by uvicorn (the extra ``http``) in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from consecution.errors import MissingExtraError

SWEEP_S = 0.25
KEEP_ALIVE_S = 75
SILENT_S = 90.0
"""So long a connection may be open without a whole request head: more than one that is kept alive."""
LAST_ANSWERS_S = 5
"""How long a stop waits for clients to take their answers."""
STARTED_WITHIN_S = 30.0
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def import_http(kind: str) -> tuple[Any, Any]:
    """The modules uvicorn and starlette."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(
            f"Producer({kind!r}) needs starlette and uvicorn: pip install 'consecution[http]' ({error})", extra="http"
        ) from error
    return uvicorn, starlette


class HttpServer:
    """Serves ``app`` at a listening socket, from `start` to `stop`; ``sweep`` is called again and again meanwhile.

    ``app`` and ``sweep`` run in its thread. At most ``max_connections`` clients are served; others are told to come
    again. ``stopping`` is called, in its thread, when it is about to end.
    """

    def __init__(
        self,
        app: Any,
        listener: socket.socket,
        *,
        max_connections: int,
        sweep: Callable[[], None],
        stopping: Callable[[], None],
    ) -> None:
        self._app = app
        self._listener = listener
        self._max_connections = max_connections
        self._sweep = sweep
        self._stopping = stopping
        self._thread = threading.Thread(target=self._run, name="consecution-http", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._silent: dict[Any, tuple[Any, float]] = {}
        self._server: Any = None
        self.problem: BaseException | None = None
        """What it died of."""

    def start(self) -> None:
        self._thread.start()
        self._started.wait(STARTED_WITHIN_S)

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Let a function run in the server's thread. Nothing happens once it is gone."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed.
                self._loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        """Take no more connections, wait until all that were asked have their answers, and end."""
        self.call(self._begin_stop)
        self._thread.join(LAST_ANSWERS_S * 2)

    def _begin_stop(self) -> None:
        self._stopping()
        self._server.should_exit = True

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.problem = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        import uvicorn

        self._loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=LAST_ANSWERS_S,
        )
        config.load()
        self._serve_at_most(config)
        self._server = uvicorn.Server(config)
        self._started.set()
        sweeper = asyncio.create_task(self._sweep_again_and_again())
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            sweeper.cancel()

    def _serve_at_most(self, config: Any) -> None:
        """uvicorn's own limit answers requests, but keeps silent connections without end."""
        base: Any = config.http_protocol_class

        def connection_made(connection: Any, transport: Any) -> None:
            if len(self._server.server_state.connections) < self._max_connections:
                base.connection_made(connection, transport)
                return
            transport.set_protocol(asyncio.Protocol())
            transport.write(TOO_MANY)
            transport.close()

        config.http_protocol_class = type("Connection", (base,), {"connection_made": connection_made})

    async def _sweep_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweep()
            self._close_silent()

    def _close_silent(self) -> None:
        """Close connections that have not brought a new request for too long, while none is being answered."""
        now_s = asyncio.get_running_loop().time()
        before, self._silent = self._silent, {}
        for connection in list(self._server.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                continue
            last, since_s = before.get(connection, (None, now_s))
            since_s = since_s if last is cycle else now_s
            self._silent[connection] = cycle, since_s
            if now_s - since_s > SILENT_S:
                connection.transport.close()
