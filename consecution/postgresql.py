"""What is known of PostgreSQL by all that talk to one: its urls, its errors, and what a connection had better be."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

SCHEMES = ("postgresql://", "postgres://")
DEFAULTS = {
    "application_name": "consecution",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""What the url may say otherwise. A host that is gone without a word is noticed in half a minute, not in two hours."""

OUTAGES = ("08", "40", "53", "57", "58", "25006", "55P03")
"""Beginnings of SQLSTATE: connection, rolled back by the server (deadlock), resources, operator, system; read-only
(a server that has become a stand-by), lock not available."""
REFUSALS = ("password authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")
"""What a server says that will not let us in later either, unless somebody changes something."""


def without_password(url: str) -> str:
    """The url as it may be shown."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=login.partition(":")[0] + at + host))
