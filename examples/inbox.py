"""What do the orders that come by HTTP add up to?

    inbox (HTTP) | order | [balance * 2 | totals, orders]

Every client posts its orders, and has its answer once they are in the journal: from then on nothing loses them, not
even ``kill -9``. A client that hears nothing posts the same again, with the same Idempotency-Key, and nothing is
counted twice.

    python examples/inbox.py
    consecution run examples/inbox.py

    curl localhost:8080 -H 'Content-Type: application/json' -d '{"customer": "Ada", "cents": 1250}'
    curl 'localhost:8080/?wait=true' -H 'Content-Type: application/json' -d '{"customer": "Ada"}'

The second one is told what is wrong with it, for it waits until its order is completely processed. Ctrl-C stops; the
next start goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from consecution import GlobalState, JsonLines, KeyedNode, Map, Pipeline, Producer, SqlSink

OUT = Path("out")
PORT = 8080


class Order(NamedTuple):
    customer: str
    cents: int


class Total(NamedTuple):
    customer: str
    orders: int
    cents: int


def order(sent: Any) -> Order:
    """What a client has sent, or an error that it is told of."""
    if not isinstance(sent, dict) or not isinstance(sent.get("customer"), str):
        raise ValueError("an order needs a customer")
    if type(sent.get("cents")) is not int:
        raise ValueError("an order needs cents, a whole number")
    return Order(sent["customer"], sent["cents"])


class Balance(KeyedNode):
    """The state of a customer is how many orders there were, and their sum."""

    def initial_state(self) -> tuple[int, int]:
        return 0, 0

    def key(self, item: Order) -> str:
        return item.customer

    def process(self, item: Order) -> None:
        count, cents = self.state
        self.state = count + 1, cents + item.cents
        self.push(Total(item.customer, *self.state))


class Inbox(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path, port: int = PORT) -> Pipeline:
    """The pipeline, writing into the folder ``out``."""
    return Inbox(
        Producer("http", port=port, name="inbox")
        | Map(order).on_error("park")
        | [
            Balance("balance") * 2 | SqlSink("totals", f"sqlite:///{out / 'inbox.db'}", table="totals", key="customer"),
            JsonLines("orders", out / "orders.jsonl"),
        ],
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the program around it -----------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="Take orders by HTTP, and add them up by customer.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for inbox.db, orders.jsonl and the state")
    parser.add_argument("--port", type=int, default=PORT, help="where to listen, on this machine (default: 8080)")
    arguments = parser.parse_args()
    print(f"taking orders at http://localhost:{arguments.port}; Ctrl-C stops", flush=True)
    report = build(arguments.out, arguments.port).run(state_dir=arguments.out / "inbox.state")
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
