"""The sample that the image and the unit run: orders by HTTP, into PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.databases import PostgresDatabase
from tests.deploy.files import CONTAINER, UNIT, settings, words_of
from tests.examples.programs import free_port
from tests.notify_socket import NotifySocket

DEADLINE_S = 60
TOKEN = "a-token-of-theirs"


def load_pipeline() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "pipeline"}
    exec(compile((CONTAINER / "pipeline.py").read_text(), str(CONTAINER / "pipeline.py"), "exec"), names)
    return names


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://orders@db:5432/orders", "postgresql://orders:p%40ss%2Fword@db:5432/orders"),
        (
            "postgresql://orders:old@db/orders?sslmode=require",
            "postgresql://orders:p%40ss%2Fword@db/orders?sslmode=require",
        ),
    ],
)
def test_the_password_is_put_into_the_url(url: str, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    (tmp_path / "password").write_text("p@ss/word\n")

    database_url = load_pipeline()["database_url"]

    assert database_url({"DATABASE_URL": url, "DATABASE_PASSWORD_FILE": str(tmp_path / "password")}) == expected
    assert database_url({"DATABASE_URL": url}) == url


class Service:
    """The command of the unit, run as systemd runs it; ``notify`` plays systemd."""

    def __init__(self, folder: Path, environment: Mapping[str, str], notify: NotifySocket) -> None:
        self.folder = folder
        self.notify = notify
        words = [word.replace("%S/consecution/%i", str(folder)) for word in self._words()]
        words[words.index("/etc/consecution/%i.py")] = str(CONTAINER / "pipeline.py")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "consecution", *words],
            cwd=folder,
            env={**notify.environment(watchdog_s=30), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _words() -> list[str]:
        (start,) = settings(UNIT.read_text())["ExecStart"]
        return words_of(start)

    def end(self) -> tuple[int, str]:
        out, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out + errors


@contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[Service]:
    notify = NotifySocket()
    service = Service(folder, environment, notify)
    try:
        notify.wait_for("READY=1")
        yield service
    finally:
        service.process.kill()
        service.process.communicate(timeout=DEADLINE_S)
        notify.close()


class Client:
    """Sends orders until they are taken, as a good client does: again with the same key where there was no answer."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"})

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def post(self, key: str, customer: str, cents: int) -> int:
        give_up_s = time.monotonic() + DEADLINE_S
        order = {"customer": customer, "cents": cents}
        while True:
            try:
                return self._http.post("/", json=order, headers={"Idempotency-Key": key}).status_code
            except httpx.TransportError:
                assert time.monotonic() < give_up_s, f"nobody has answered {key}"
                time.sleep(0.05)


def test_the_unit_s_command_serves_is_killed_goes_on_and_stops(postgres: PostgresDatabase, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    port = free_port()
    environment = {
        "DATABASE_URL": postgres.url,
        "ORDERS_PORT": str(port),
        "ORDERS_TOKEN_FILE": str(tmp_path / "tokens"),
    }

    with Client(port) as client, running(tmp_path, environment) as service:
        assert [client.post(f"a{n}", "Ada", n) for n in range(20)] == [202] * 20
        service.process.kill()
    with Client(port) as client, running(tmp_path, environment) as service:
        assert client.post("a19", "Ada", 19) == 202, "a repeat"
        assert [client.post(f"b{n}", "Bob", n) for n in range(20)] == [202] * 20
        service.process.send_signal(signal.SIGTERM)
        service.notify.wait_for("STOPPING=1")
        code, told = service.end()

    assert code == 0, told
    assert "WATCHDOG=1" in service.notify.lines
    assert sorted(postgres.query("SELECT customer, orders, cents FROM totals")) == [("Ada", 20, 190), ("Bob", 20, 190)]
    assert postgres.query("SELECT count(*), sum(cents) FROM orders") == [(40, 380)]
