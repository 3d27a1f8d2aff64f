from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.examples import programs

ingest = programs.load("ingest")
PLACES = {f"town {n}": (n / 2, -n / 4) for n in range(60)}


class Gate:
    """The geocoder thinks until it is opened, about each question."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_open = False

    async def think(self) -> None:
        self.asked += 1
        while not self.is_open:
            await asyncio.sleep(0.005)


def wait_until(happened: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + programs.DEADLINE_S
    while not happened():
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.01)


def test_all_are_asked_about_at_once_and_each_is_in_both_places_once_over_a_kill(tmp_path: Path) -> None:
    """One after the other, the second would never be asked about: there is no answer before all have been."""
    port, gate = programs.free_port(), Gate()
    url = f"http://localhost:{port}/"
    with ingest.serve(ingest.make_geocoder(PLACES, gate.think)) as geocoder:
        process = programs.start_listening("ingest", port, tmp_path, "--geocoder", geocoder)
        try:
            addresses = [{"id": n, "address": f"Town {n}"} for n in range(60)]
            assert httpx.post(url, json=addresses).status_code == 202
            wait_until(lambda: gate.asked == 60)
            process.kill()
            process.communicate()

            process = programs.start_listening("ingest", port, tmp_path, "--geocoder", geocoder)
            wait_until(lambda: gate.asked == 120)
            gate.is_open = True
            unknown = httpx.post(url, params={"wait": "true"}, json={"id": 60, "address": "Atlantis"}, timeout=60)
            known = httpx.post(url, params={"wait": "true"}, json={"id": 61, "address": "town 7"}, timeout=60)
            told = programs.stop(process)
        finally:
            process.kill()
            process.communicate()

    assert unknown.status_code == 500
    (failure,) = unknown.json()["failures"]
    assert (failure["node"], failure["attempts"]) == ("geocode", 1)
    assert "nobody knows where Atlantis is" in failure["error"]
    assert known.status_code == 200, told
    assert "failed 1 " in told
    expected = [(n, f"Town {n}", n / 2, -n / 4) for n in range(60)] + [(61, "town 7", 3.5, -1.75)]
    assert programs.query(tmp_path / "ingest.db", "SELECT * FROM places ORDER BY id") == expected
    lines = [tuple(json.loads(line)) for line in (tmp_path / "places.jsonl").read_text().splitlines()]
    assert sorted(lines) == expected


def test_the_demo_looks_up_a_thousand_addresses_and_stops(tmp_path: Path) -> None:
    line = programs.script("ingest", "--demo", "--out", str(tmp_path), "--port", str(programs.free_port()))

    ended = programs.call(line, tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert "1,000 addresses in" in ended.stdout
    assert programs.query(tmp_path / "ingest.db", "SELECT count(*) FROM places") == [(1000,)]
