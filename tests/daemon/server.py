"""A PostgreSQL server of the daemon's own, which is cut off and restarted while the daemon writes to it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from tests.databases import PostgresDatabase
from tests.sinks.cluster import Cluster, Unavailable

URL_FILE = "server.url"
"""Says in the daemon's folder where the server is; there is no such file where there is none."""
AWAY_S = 0.5


class Server:
    """Runs from the beginning. End it with `remove`, whatever happens."""

    def __init__(self) -> None:
        """Unavailable: there is none to be had here."""
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise Unavailable("psycopg is not installed: pip install 'consecution[postgres]'") from error
        self._cluster = Cluster()
        self._database = PostgresDatabase(self._cluster, "postgres")
        self.url = self._database.url
        try:
            self._cluster.make()
            self._cluster.start()
        except BaseException:
            self._cluster.remove()
            raise

    def ask(self, statement: str) -> list[Any]:
        return self._database.query(statement)

    def has(self, table: str) -> bool:
        return self.ask(f"SELECT to_regclass('{table}')") != [(None,)]

    def end_sessions(self) -> int:
        """Cut off everybody; how many there were."""
        return self._database.end_sessions()

    def restart(self, how: signal.Signals) -> None:
        """It is away for a while. SIGINT: shut down in order, SIGQUIT: as in a crash."""
        self._cluster.stop(how)
        time.sleep(AWAY_S)
        self._cluster.start()

    def remove(self) -> None:
        self._cluster.remove()


@contextlib.contextmanager
def server_here() -> Iterator[Server | str]:
    """A server, or why there is none."""
    try:
        made = Server()
    except Unavailable as reason:
        yield f"no PostgreSQL server, so no reconnects: {reason}"
        return
    try:
        yield made
    finally:
        made.remove()
