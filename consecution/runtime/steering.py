"""Lets others watch and steer a run from outside: the record of the run, its control socket, and what it obeys.

A pause is a file in the state directory, so that it outlasts the run, a crash and the machine's next start: what
somebody has paused must not go on by itself. One that was asked for a time is not: it ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from consecution.errors import UsageError, reason_of, text_of
from consecution.options import Options
from consecution.report import Status
from consecution.runtime.control_socket import LONGEST_PATH_BYTES, ControlServer
from consecution.runtime.run_record import NAME as RECORD
from consecution.runtime.run_record import RunRecord, private
from consecution.transport.socket_folder import SocketFolder

SOCKET = "control.sock"
PAUSED = "paused"
LOOK_EVERY_S = 0.05
"""How often a run without a thread for it looks whether somebody asks."""


class Steered(Protocol):
    """A run as it is steered. All of it may be called by any thread, and returns at once."""

    def status(self) -> Status: ...

    def request_stop(self) -> None: ...

    def abort(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Steering:
    """Watches over what is asked of one run. `serve` in a thread of its own, or `look` now and then.

    ``state_dir`` belongs to the run, which holds its lock.
    """

    def __init__(
        self,
        run: Steered,
        state_dir: Path,
        options: Options,
        say: Callable[[str], None],
        *,
        metrics_port: int | None = None,
    ) -> None:
        self._run = run
        self._dir = state_dir
        self._options = options
        self._abort_at_s: float | None = None
        self._resume_at_s: float | None = None
        self._looked_s = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None
        self._folder: SocketFolder | None = None
        self._server = self._listen()
        self._record = RunRecord(os.getpid(), time.time(), options.mode, self._server.path, metrics_port)
        try:
            self._record.write(state_dir)
        except OSError as error:  # a full disk: the journal says what to do about it, if it is in need of room, too
            what = f"{state_dir}/{RECORD} cannot be written: {reason_of(error)}"
            say(f"nobody can watch or steer this run from outside: {what}")
        if options.fresh:
            self._forget_pause()
        elif pause_is_kept(state_dir):
            run.pause()
            say(f"paused: nothing is read until `consecution resume {state_dir}`")

    def _listen(self) -> ControlServer:
        """In the state directory; where that has too long a path, in a folder with a short one."""
        path = str(self._dir / SOCKET)
        if len(os.fsencode(path)) <= LONGEST_PATH_BYTES:
            with contextlib.suppress(OSError):  # not every file system takes sockets
                return ControlServer(path, self._answer)
        self._folder = SocketFolder()
        return ControlServer(os.path.join(self._folder.path, SOCKET), self._answer)

    # -- who drives it ---------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve in a thread of its own until `end`."""
        self._thread = threading.Thread(target=self._serve, name="consecution-control", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing:
            self._turn(None)

    def look(self) -> None:
        """Serve whoever is there, at most twenty times a second. For a run without a thread for it."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S and not self._closing:
            self._looked_s = now_s
            self._turn(0.0)

    def _turn(self, timeout_s: float | None) -> None:
        now_s = time.monotonic()
        due = [due_s - now_s for due_s in (self._abort_at_s, self._resume_at_s) if due_s is not None]
        self._server.turn(min(due, default=timeout_s) if timeout_s is None else timeout_s)
        now_s = time.monotonic()
        if self._abort_at_s is not None and self._abort_at_s <= now_s:
            self._abort_at_s = None
            self._run.abort()
        if self._resume_at_s is not None and self._resume_at_s <= now_s:
            self._resume_at_s = None
            self._run.resume()

    def end(self, outcome: str, status: Status | None, error: BaseException | None = None) -> None:
        """The run is over: put that on record, and listen no more. Harmless when repeated."""
        if self._closing:
            return
        self._closing = True
        if self._thread is not None:
            self._server.wake()
            self._thread.join()
        ended = replace(
            self._record,
            control=None,
            ended_s=time.time(),
            outcome=outcome,
            error=None if error is None else text_of(error),
            status=None if status is None else status.to_dict(),
        )
        with contextlib.suppress(OSError):  # a full disk must not hide what the run has ended with
            ended.write(self._dir)
        self._server.close()
        if self._folder is not None:
            self._folder.close()

    # -- what is asked ---------------------------------------------------------------------------

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        command = request.get("command")
        obey = _COMMANDS.get(command) if isinstance(command, str) else None
        if obey is None:
            raise UsageError(f"there is no command {command!r}; expected one of {', '.join(_COMMANDS)}")
        more = obey(self, request)
        record = self._record
        told = {"pid": record.pid, "mode": record.mode, "started_s": record.started_s}
        return {**told, "metrics_port": record.metrics_port, **more, "status": self._run.status().to_dict()}

    def _tell_status(self, request: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        grace_s = _seconds_of(request, "timeout_s", self._options.stop_timeout_s)
        if request.get("now") is True:
            grace_s = 0.0
            self._run.abort()
        else:
            self._run.request_stop()
            self._abort_at_s = time.monotonic() + grace_s
        return {"grace_s": grace_s}

    def _drain(self, request: dict[str, Any]) -> dict[str, Any]:
        self._run.request_stop()
        self._abort_at_s = None
        return {}

    def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        for_s = _seconds_of(request, "for_s", None)
        if for_s is None:
            keep_paused(self._dir, paused=True)
            self._resume_at_s = None
        elif not pause_is_kept(self._dir):
            self._resume_at_s = time.monotonic() + for_s
        self._run.pause()
        return {}

    def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        self._forget_pause()
        self._resume_at_s = None
        self._run.resume()
        return {}

    def _forget_pause(self) -> None:
        keep_paused(self._dir, paused=False)


_COMMANDS: dict[str, Callable[[Steering, dict[str, Any]], dict[str, Any]]] = {
    "status": Steering._tell_status,
    "stop": Steering._stop,
    "drain": Steering._drain,
    "pause": Steering._pause,
    "resume": Steering._resume,
}


def keep_paused(state_dir: Path, *, paused: bool) -> None:
    """Let every run over this directory be paused from its start, or no more. The caller holds its lock."""
    if paused:
        open(state_dir / PAUSED, "w", opener=private).close()
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(state_dir / PAUSED)


def pause_is_kept(state_dir: Path) -> bool:
    """Whether a run over this directory, the one that goes on or the next, reads nothing until it is resumed."""
    return (state_dir / PAUSED).exists()


def _seconds_of(request: dict[str, Any], name: str, default: Any) -> Any:
    found = request.get(name)
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < 1e9:
        raise UsageError(f"{name}={found!r}: expected seconds, 0 or more")
    return float(found)
