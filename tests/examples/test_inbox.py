from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.examples import programs


def test_orders_add_up_over_a_kill_and_a_stop_and_clients_hear_what_is_wrong(tmp_path: Path) -> None:
    port = programs.free_port()
    url, key = f"http://localhost:{port}/", {"idempotency-key": "ada-1"}
    order = {"customer": "Ada", "cents": 1250}
    process = programs.start_listening("inbox", port, tmp_path)
    try:
        assert httpx.post(url, json=[order, {"customer": "Blaise", "cents": 300}], headers=key).status_code == 202
        wrong = httpx.post(url, params={"wait": "true"}, json={"customer": "Ada"}, timeout=programs.DEADLINE_S)
        process.kill()
        process.communicate()

        process = programs.start_listening("inbox", port, tmp_path)
        again = httpx.post(url, json=[order, {"customer": "Blaise", "cents": 300}], headers=key)
        last = httpx.post(url, params={"wait": "true"}, json={"customer": "Ada", "cents": 5}, timeout=60)
        told = programs.stop(process)
    finally:
        process.kill()
        process.communicate()

    assert (wrong.status_code, wrong.json()["failures"][0]["node"]) == (500, "order")
    assert "an order needs cents, a whole number" in wrong.json()["failures"][0]["error"]
    assert (again.status_code, again.json()) == (202, {"taken": 2, "repeated": True})
    assert last.status_code == 200, told
    rows = programs.query(tmp_path / "inbox.db", "SELECT customer, orders, cents FROM totals ORDER BY customer")
    assert rows == [("Ada", 2, 1255), ("Blaise", 1, 300)]
    lines = [json.loads(line) for line in (tmp_path / "orders.jsonl").read_text().splitlines()]
    assert sorted(line[1] if isinstance(line, list) else line["cents"] for line in lines) == [5, 300, 1250]
