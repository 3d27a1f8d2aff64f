"""How does a table of PostgreSQL come into SQLite, tidied up, while others write to it?

    orders in PostgreSQL | tidy | orders in SQLite

Every row is copied once, in the order of its key, whatever is killed on either side. With `--follow` it waits for more,
and PostgreSQL wakes it up; then it runs until it is stopped, and goes on after that where it was.

    export ORDERS=postgresql://user:password@localhost/shop
    python examples/pg_copy.py --make 10000
    python examples/pg_copy.py
    python examples/pg_copy.py --follow --state-dir state
    consecution run examples/pg_copy.py --state-dir state

`--make` gives you a table to try it with. A key is drawn before its transaction is committed, so a larger one
may be seen first: `SETTLE_S` says how long a transaction may take and still be waited for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from consecution import GlobalState, Map, Pipeline, Producer, Report, SqlSink
from consecution.errors import MissingExtraError

OUT = Path("out")
URL = "postgresql://localhost/shop"
TABLE, CHANNEL = "orders", "orders_changed"
SETTLE_S = 2.0
POLL_S = 5.0
"""Nobody need notify anybody: it looks this often all the same."""

CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    ordered_at timestamptz NOT NULL DEFAULT now()
)"""
INSERT = f"""
INSERT INTO {TABLE} (customer, amount)
SELECT '  Customer ' || n %% 97 || ' ', (n * 37 %% 100000) / 100.0 FROM generate_series(1, %s) AS n"""


class Order(NamedTuple):
    """A row as it is copied: amounts are whole cents, times are UTC."""

    id: int
    customer: str
    cents: int
    ordered_at: str


def tidy(row: dict[str, Any]) -> Order:
    return Order(
        id=row["id"],
        customer=row["customer"].strip().lower(),
        cents=int(Decimal(row["amount"]) * 100),
        ordered_at=row["ordered_at"].isoformat(),
    )


class Copy(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path, url: str | None = None, *, follow: bool = False) -> Pipeline:
    """The pipeline, writing into the folder ``out``; ``url`` is that of ``$ORDERS`` if it is not given."""
    waiting: dict[str, Any] = {"poll_s": POLL_S, "listen": CHANNEL, "settle_s": SETTLE_S} if follow else {}
    source = url or os.environ.get("ORDERS", URL)
    return Copy(
        Producer("sql", name="orders", url=source, table=TABLE, order_by="id", **waiting)
        | Map(tidy)
        | SqlSink("copy", f"sqlite:///{out / 'orders.db'}", table=TABLE, key=("id",)),
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------


def make_orders(url: str, count: int) -> None:
    """A table with so many more orders, and word of them."""
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError(
            "this example needs the psycopg package: pip install 'consecution[postgres]'", extra="postgres"
        ) from error
    with psycopg.connect(url) as connection:
        connection.execute(CREATE)
        connection.execute(INSERT, [count])
        connection.execute(f"NOTIFY {CHANNEL}")


def summarize(out: Path) -> str:
    """What is there, for a person."""
    with contextlib.closing(sqlite3.connect(out / "orders.db")) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", [TABLE]).fetchone()[0]:
            return "There are no orders yet."
        count, cents = connection.execute(f"SELECT count(*), sum(cents) FROM {TABLE}").fetchone()
        best = connection.execute(
            f"SELECT customer, count(*), sum(cents) FROM {TABLE} GROUP BY customer ORDER BY sum(cents) DESC LIMIT 3"
        ).fetchall()
    return "\n".join(
        [
            f"{count:,} orders, {cents / 100:,.2f} in all",
            *(f"  {customer: <16}{orders:>8,} orders  {cents / 100:>14,.2f}" for customer, orders, cents in best),
            "",
            f"All of them: {out / 'orders.db'} (SQLite, table {TABLE})",
        ]
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Copy a table of orders from PostgreSQL to SQLite, tidied up.",
        epilog="example: python examples/pg_copy.py --follow --state-dir state",
    )
    parser.add_argument("--url", help="of the database to copy from (default: $ORDERS)")
    parser.add_argument("--follow", action="store_true", help="wait for more rows, until stopped by Ctrl-C or SIGTERM")
    parser.add_argument("--make", type=int, metavar="N", help="write N orders into the table, and do no more")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the copy (default: out)")
    parser.add_argument("--state-dir", type=Path, help="folder that remembers: run again with it to go on after a stop")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> Report:
    pipeline = build(arguments.out, arguments.url, follow=arguments.follow)
    return pipeline.run(workers="auto", state_dir=arguments.state_dir, progress=True)


def main() -> int:
    arguments = parse_arguments()
    if arguments.make is not None:
        make_orders(arguments.url or os.environ.get("ORDERS", URL), arguments.make)
        return 0
    if arguments.state_dir is None or not (arguments.state_dir / "manifest.json").exists():
        (arguments.out / "orders.db").unlink(missing_ok=True)
    report = run(arguments)
    print(report, end="\n\n")
    print(summarize(arguments.out))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
