"""A PostgreSQL server for as long as the runs take, with a database for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from tests.sinks.cluster import Cluster, Unavailable

Databases = Callable[[], AbstractContextManager[str]]
"""Makes a database, gives its url, and drops it afterwards; "" where there is no server."""


@contextmanager
def a_server(wanted: bool | None) -> Iterator[Databases]:
    """``wanted`` None: where one can be started."""
    if wanted is False:
        yield lambda: nullcontext("")
        return
    try:
        import psycopg

        cluster = Cluster()
        cluster.make()
        cluster.start()
    except (ImportError, Unavailable) as error:
        if wanted:
            raise
        print(f"without PostgreSQL: {error}")
        yield lambda: nullcontext("")
        return
    numbers = itertools.count(1)

    @contextmanager
    def make_database() -> Iterator[str]:
        name = f"ledger_{next(numbers)}"
        with psycopg.connect(cluster.url(), autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")
            yield cluster.url(name)
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")

    try:
        yield make_database
    finally:
        cluster.remove()
