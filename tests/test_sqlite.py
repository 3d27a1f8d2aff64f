from __future__ import annotations

import pytest

from consecution import SqlSink
from consecution.errors import UsageError
from consecution.sources.sql import SqlSource


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///./:memory:",
        "sqlite:///file:",
        "sqlite:///file::memory:",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:orders?mode=memory&cache=shared",
        "sqlite:///file:/orders?vfs=memdb",
        "sqlite+pysqlite://",
        "sqlite+pysqlite:///?timeout=5",
        "sqlite+pysqlite:///:memory:?timeout=5",
        "sqlite+pysqlite:///file:orders?mode=memory&uri=true",
        "file::memory:?cache=shared",
        "duckdb:///:memory:",
    ],
)
def test_a_database_in_memory_is_refused_before_anything_starts(url: str) -> None:
    found = "found a database in memory, of which each process would have one of its own, an empty one: give the path"
    with pytest.raises(UsageError) as of_source:
        SqlSource(url, table="t", order_by="id")
    with pytest.raises(UsageError) as of_sink:
        SqlSink("orders", url, table="t")

    assert f"the sql source: url={url!r}: expected sqlite:///path, postgresql://" in str(of_source.value)
    assert f"N(orders): url={url!r}: expected sqlite:///path or postgresql://" in str(of_sink.value)
    assert found in str(of_source.value)
    assert found in str(of_sink.value)


@pytest.mark.parametrize("name", ["a:memory:", "memory", "/tmp/:memory:", "file:orders.db", "x.db?mode=memory"])
def test_a_file_whose_name_only_looks_like_memory_is_taken(name: str) -> None:
    SqlSource(f"sqlite:///{name}", table="t", order_by="id")
    SqlSink("orders", f"sqlite:///{name}", table="t")
