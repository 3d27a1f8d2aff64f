"""What the daemon does: payments of a log that is rotated and of a table that grows, added up and written down.

Run in the folder of `tests.daemon.life`. Where that has a PostgreSQL server, each payment is a row there too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from consecution import JsonLines, KeyedNode, Map, Pipeline, Producer, SqlSink
from tests.daemon.server import URL_FILE

SLOW_EVERY, SLOW_S = 997, 0.05


class Payment(NamedTuple):
    source: str
    number: int
    account: str
    cents: int


class Total(NamedTuple):
    account: str
    payments: int
    cents: int


def parse(line: str) -> Payment:
    number, account, cents = line.split()
    return Payment("log", int(number), account, int(cents))


def of_row(row: dict[str, Any]) -> Payment:
    return Payment("table", row["id"], row["account"], row["cents"])


def dawdle(payment: Payment) -> Payment:
    """Now and then it takes its time, so that what is behind it has to wait."""
    if payment.number % SLOW_EVERY == 0:
        time.sleep(SLOW_S)
    return payment


class Balance(KeyedNode):
    def initial_state(self) -> tuple[int, int]:
        return 0, 0

    def key(self, item: Payment) -> str:
        return item.account

    def process(self, item: Payment) -> None:
        payments, cents = self.state
        self.state = payments + 1, cents + item.cents
        self.push(Total(item.account, *self.state))


def sinks() -> list[Any]:
    made: list[Any] = [
        Balance("balance") * 2 | SqlSink("totals", "sqlite:///out.db", table="totals", key="account"),
        JsonLines("audit", "audit.jsonl"),
    ]
    url = Path(URL_FILE)
    return [*made, SqlSink("ledger", url.read_text(), table="ledger")] if url.exists() else made


pipeline = Pipeline(
    [
        Producer("files", "logs/app.log", follow=True, poll_s=0.05, name="log")
        | Map(parse, name="parse").on_error("park"),
        Producer("sql", "sqlite:///in.db", table="payments", order_by="id", poll_s=0.1, name="table")
        | Map(of_row, name="row"),
    ]
    | Map(dawdle, name="dawdle")
    | sinks()
)
