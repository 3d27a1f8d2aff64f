"""Databases for tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sinks.cluster import Cluster, Unavailable

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server of this test run's own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'consecution[postgres]'")
    try:
        made = Cluster()
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        made.make()
        made.start()
        yield made
    except Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        made.remove()


class PostgresDatabase:
    """A database of its own for one test."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.url = cluster.url(name)

    def query(self, statement: str, *values: Any, database: str | None = None) -> list[Any]:
        import psycopg

        url = self.cluster.url(database or self.name)
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def end_sessions(self) -> int:
        """Cut off everybody who is connected; how many there were."""
        ended = self.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            self.name,
        )
        return len(ended)


@pytest.fixture
def postgres(cluster: Cluster) -> Iterator[PostgresDatabase]:
    made = PostgresDatabase(cluster, f"test_{next(_numbers)}")
    made.query(f"CREATE DATABASE {made.name}", database="postgres")
    yield made
    made.query(f"DROP DATABASE {made.name} WITH (FORCE)", database="postgres")
