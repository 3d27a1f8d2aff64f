"""A private PostgreSQL server for tests: in a temporary folder, on a Unix socket, gone with the test run.

``initdb`` and ``postgres`` come from the system's package (Debian: ``apt-get install postgresql``). They refuse to
run as root, so root lets another user run them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

OTHER_USERS = ("postgres", "nobody")
START_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02
LOCKED_ROLE = "locked"
"""A role that needs a password; all others are trusted."""
SETTINGS = ("listen_addresses=", "fsync=off", "max_connections=40", "shared_buffers=16MB")


class Unavailable(Exception):
    """There is no PostgreSQL to be had here; the text says why."""


def find_programs() -> Path:
    """The folder of ``initdb`` and ``postgres``, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise Unavailable("no initdb here: install PostgreSQL's server (Debian: apt-get install postgresql)")
    return Path(on_path).resolve().parent


class Cluster:
    """One server. `make` and `start` it; `stop` ends it, however often it was started."""

    def __init__(self) -> None:
        self.programs = find_programs()
        self._user = _other_user() if os.getuid() == 0 else None
        # A socket's path may have 107 bytes, and another user must be able to reach it.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._server: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        arguments = ["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            [self.programs / "initdb", *arguments, self.folder / "data"],
            capture_output=True,
            text=True,
            **self._as_user(),
        )
        if made.returncode:
            raise Unavailable(f"initdb failed: {made.stderr}")
        rules = f"local all {LOCKED_ROLE} scram-sha-256\nlocal all all trust\n"
        (self.folder / "data/pg_hba.conf").write_text(rules)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with open(self.folder / "log", "ab") as log:
            self._server = subprocess.Popen(
                [
                    *_dying_with_parent(),
                    self.programs / "postgres",
                    "-D",
                    self.folder / "data",
                    "-k",
                    self.folder,
                    *settings,
                ],
                stdout=log,
                stderr=log,
                **self._as_user(),
            )
        deadline_s = time.monotonic() + START_WITHIN_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline_s:
                raise Unavailable(f"the server did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(LOOK_EVERY_S)

    def _answers(self) -> bool:
        asked = subprocess.run(
            [self.programs / "pg_isready", "-q", "-h", self.folder, "-d", "postgres"], stdout=subprocess.DEVNULL
        )
        return asked.returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all sessions and shuts down; SIGQUIT drops everything, as a crash does."""
        server, self._server = self._server, None
        if server is not None:
            server.send_signal(how)
            server.wait(timeout=60)

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def url(self, database: str = "postgres", user: str = "postgres", password: str = "") -> str:
        login = f"{user}:{password}" if password else user
        return f"postgresql://{login}@/{database}?host={self.folder}"

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        found = pwd.getpwnam(self._user)
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": [], "cwd": "/"}


def _other_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in OTHER_USERS:
        if name in names:
            return name
    raise Unavailable(f"PostgreSQL does not run as root, and there is none of the users {', '.join(OTHER_USERS)}")


def _dying_with_parent() -> list[str]:
    """A test run that is killed leaves no server behind, where there is a program for that."""
    return ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
