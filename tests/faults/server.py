"""A PostgreSQL server for as long as the runs take, with a database for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.sinks.cluster import Cluster, Unavailable


@contextmanager
def a_server(wanted: bool | None) -> Iterator[Callable[[], str]]:
    """Gives a function that makes a database and returns its url; "" where there is no server.

    ``wanted`` None: where one can be started.
    """
    if wanted is False:
        yield lambda: ""
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
        yield lambda: ""
        return
    numbers = itertools.count(1)

    def make_database() -> str:
        name = f"ledger_{next(numbers)}"
        with psycopg.connect(cluster.url(), autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")
        return cluster.url(name)

    try:
        yield make_database
    finally:
        cluster.remove()
