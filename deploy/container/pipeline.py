"""Orders come by HTTP and go into PostgreSQL, with a total for each customer.

    orders (HTTP) | order | [placed, balance * 2 | totals]

It takes all it has to know from the environment, as programs in containers do:

    DATABASE_URL         of the database (default: postgresql:///orders)
    DATABASE_PASSWORD_FILE   a file with its password, if that is not part of the url
    ORDERS_HOST, ORDERS_PORT where to listen (default: 127.0.0.1 and 8080)
    ORDERS_TOKEN_FILE    a file with the tokens of those who may send, one a line; needed beyond this machine

    curl localhost:8080 -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
        -H 'Idempotency-Key: 17' -d '{"customer": "Ada", "cents": 1250}'
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from consecution import KeyedNode, Map, Pipeline, Producer, SqlSink


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


def database_url(environment: Mapping[str, str]) -> str:
    """The url, with the password of the file put in."""
    url = environment.get("DATABASE_URL", "postgresql:///orders")
    password_file = environment.get("DATABASE_PASSWORD_FILE")
    if not password_file:
        return url
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    password = quote(Path(password_file).read_text().strip(), safe="")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:{password}@{host}"))


def build(environment: Mapping[str, str]) -> Pipeline:
    """The pipeline that this environment asks for."""
    url = database_url(environment)
    orders = Producer(
        "http",
        name="orders",
        host=environment.get("ORDERS_HOST", "127.0.0.1"),
        port=int(environment.get("ORDERS_PORT", "8080")),
        token_file=environment.get("ORDERS_TOKEN_FILE"),
    )
    return Pipeline(
        orders
        | Map(order).on_error("park")
        | [
            SqlSink("placed", url, table="orders"),
            Balance("balance") * 2 | SqlSink("totals", url, table="totals", key="customer"),
        ]
    )


pipeline = build(os.environ)
