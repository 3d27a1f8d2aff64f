"""What is known of SQLite by all that talk to one: how urls begin, and which name one that nobody else would see."""

from __future__ import annotations

from pathlib import PurePath
from urllib.parse import parse_qs, unquote

from consecution.errors import UsageError

SQLITE = "sqlite:///"
MEMORY = ":memory:"


def check_in_file(url: str, owner: str, expected: str) -> None:
    """UsageError for a database in memory: each connection, in each process, would have an empty one of its own.

    What is wrong with a url otherwise is left to others.
    """
    if _is_in_memory(url):
        raise UsageError(
            f"{owner}: url={url!r}: expected {expected}; found a database in memory, of which each process would have "
            "one of its own, an empty one: give the path of a file, as in sqlite:///rows.db"
        )


def _is_in_memory(url: str) -> bool:
    scheme, mark, rest = url.partition("://")
    if not mark:
        return _is_memory_uri(url)
    host, _, name = rest.partition("/")
    if host or scheme.partition("+")[0] != "sqlite":
        return name == MEMORY
    if "+" in scheme and not name.startswith("file:"):
        name = name.partition("?")[0]  # The rest is for the driver.
    plain = str(PurePath(name)) if name else MEMORY  # ./:memory: is opened as :memory:.
    return plain == MEMORY or _is_memory_uri(plain)


def _is_memory_uri(name: str) -> bool:
    """Whether it is a file name that SQLite takes for a URI (https://sqlite.org/uri.html), and names no file."""
    if not name.startswith("file:"):
        return False
    path, _, query = name.removeprefix("file:").partition("#")[0].partition("?")
    asked = parse_qs(query)
    return unquote(path) in ("", MEMORY) or asked.get("mode") == ["memory"] or asked.get("vfs") == ["memdb"]
