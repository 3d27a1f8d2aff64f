"""Where are the addresses that come by HTTP?

    inbox (HTTP) | address | geocode (100 at once) | [places (SQLite), lines (file)]

Every client posts addresses, and has its answer once they are in the journal. A geocoder, another server, says where
each of them is. It takes its time, so a hundred are asked about at once: the look-up runs at that server's speed.

    python examples/ingest.py --demo
    python examples/ingest.py
    python examples/ingest.py --geocoder http://localhost:8081/search
    GEOCODER=http://localhost:8081/search consecution run examples/ingest.py --state-dir state

    curl localhost:8080 -H 'Content-Type: application/json' -d '{"id": 1, "address": "Oslo"}'
    curl 'localhost:8080/?wait=true' -H 'Content-Type: application/json' -d '{"id": 2, "address": "Atlantis"}'

Without `--geocoder` the program starts one that stands in: it knows the cities that have an airport, and thinks for
0.2 seconds about each. An address that nobody knows is kept as failed (`consecution failed list out/ingest.state`); a
geocoder that is away is asked again. Whatever is killed, each address that was answered with 202 is in both places
once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from consecution import GlobalState, JsonLines, Map, Node, Pipeline, Producer, Report, Running, SqlSink
from consecution.errors import MissingExtraError

OUT = Path("out")
PORT = 8080
GEOCODER = "http://localhost:8081/search"
THINKS_S = 0.2
DEMO_ADDRESSES = 1_000
STARTS_WITHIN_S = 60.0


class Address(NamedTuple):
    id: int
    address: str


class Place(NamedTuple):
    """An address, and where it is, in degrees."""

    id: int
    address: str
    latitude: float
    longitude: float


class UnknownAddress(LookupError):
    """The geocoder has answered, but does not know the address: it will not know it the next time."""


def address(sent: Any) -> Address:
    """What a client has sent, or an error that it is told of."""
    if not isinstance(sent, dict) or type(sent.get("id")) is not int:
        raise ValueError("an address needs an id, a whole number")
    if not isinstance(sent.get("address"), str):
        raise ValueError("an address needs an address")
    return Address(sent["id"], sent["address"])


class Geocode(Node):
    """Asks the geocoder at ``url`` where an address is."""

    concurrency = 100
    timeout_s = 10.0
    url: str

    async def begin(self) -> None:
        aiohttp = import_extra("aiohttp")
        connector = aiohttp.TCPConnector(limit=self.concurrency)
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout())

    async def process(self, item: Address) -> None:
        async with self.session.get(self.url, params={"q": item.address}) as answer:
            if answer.status == 404:
                raise UnknownAddress(f"nobody knows where {item.address} is")
            answer.raise_for_status()
            found = await answer.json()
        self.push(Place(item.id, item.address, found["latitude"], found["longitude"]))

    async def close(self) -> None:
        await self.session.close()


def again_or_not(error: BaseException, _: Address) -> str:
    """A geocoder that is away will come back; asking again makes no address known."""
    return "park" if isinstance(error, UnknownAddress) else "retry"


class Ingest(Pipeline):
    """Makes the folder it writes into."""

    def begin(self) -> None:
        self.global_state.out.mkdir(parents=True, exist_ok=True)


def build(out: Path, port: int = PORT, geocoder: str | None = None) -> Pipeline:
    """The pipeline, writing into the folder ``out``; the geocoder is that of ``$GEOCODER`` if it is not given."""
    url = geocoder or os.environ.get("GEOCODER", GEOCODER)
    return Ingest(
        Producer("http", port=port, name="inbox")
        | Map(address).on_error("park")
        | Geocode("geocode", url=url).on_error(again_or_not, retries=10, delay_s=1.0)
        | [
            SqlSink("places", f"sqlite:///{out / 'ingest.db'}", table="places", key="id"),
            JsonLines("lines", out / "places.jsonl"),
        ],
        GlobalState(out=out),
    )


pipeline = build(OUT)


# -- the geocoder that stands in -----------------------------------------------------------------


def think() -> Awaitable[None]:
    return asyncio.sleep(THINKS_S)


def make_geocoder(places: dict[str, tuple[float, float]], think: Callable[[], Awaitable[None]] = think) -> Any:
    """An ASGI application that thinks, and then says where a place is: ``GET /search?q=Oslo``."""
    import_extra("starlette")
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def search(request: Request) -> JSONResponse:
        await think()
        found = places.get(request.query_params.get("q", "").lower())
        if found is None:
            return JSONResponse({}, status_code=404)
        return JSONResponse({"latitude": found[0], "longitude": found[1]})

    return Starlette(routes=[Route("/search", search)])


@contextlib.contextmanager
def serve(application: Any) -> Iterator[str]:
    """Serve it in a thread, at a port that is free; gives the address to search at."""
    uvicorn = import_extra("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(application, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/search"
        finally:
            server.should_exit = True
            thread.join()


def cities() -> dict[str, tuple[float, float]]:
    """Where the cities are that have an airport, by their names in small letters."""
    airports = import_extra("airportsdata").load("IATA").values()
    return {airport["city"].lower(): (airport["lat"], airport["lon"]) for airport in airports if airport["city"]}


def import_extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"this example needs the {name} package: pip install 'consecution[examples,http]'", extra="examples"
        ) from error


# -- the program around it -----------------------------------------------------------------------


def show(made: Pipeline, url: str, state_dir: Path) -> Report:
    """Run it until many addresses that are posted have been looked up, and tell how long that took."""
    with made.start(state_dir=state_dir) as running:
        wait_until_it_answers(running, url)
        post_many(url)
        return running.stop()


def post_many(url: str) -> None:
    addresses = [{"id": id, "address": city} for id, city in enumerate(sorted(cities())[:DEMO_ADDRESSES])]
    request = urllib.request.Request(f"{url}?wait=true", json.dumps(addresses).encode())
    request.add_header("Content-Type", "application/json")
    started_s = time.monotonic()
    with urllib.request.urlopen(request) as answer:
        print(answer.status, answer.read().decode())
    took_s = time.monotonic() - started_s
    print(
        f"{len(addresses):,} addresses in {took_s:.1f} s, {len(addresses) / took_s:,.0f} a second. "
        f"One after the other they would take {len(addresses) * THINKS_S:,.0f} s."
    )


def wait_until_it_answers(running: Running, url: str) -> None:
    give_up_s = time.monotonic() + STARTS_WITHIN_S
    while running.join(0.05) is None and time.monotonic() < give_up_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}health"):
            return
    raise SystemExit(f"nobody answers at {url}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Take addresses by HTTP, and find out where they are.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for ingest.db, places.jsonl and the state")
    parser.add_argument("--port", type=int, default=PORT, help="where to listen, on this machine (default: 8080)")
    parser.add_argument("--geocoder", metavar="URL", help="whom to ask (default: one that is started and stands in)")
    parser.add_argument("--demo", action="store_true", help=f"post {DEMO_ADDRESSES:,} addresses, and stop after that")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    url = f"http://localhost:{arguments.port}/"
    with contextlib.ExitStack() as stack:
        geocoder = arguments.geocoder or stack.enter_context(serve(make_geocoder(cities())))
        made = build(arguments.out, arguments.port, geocoder)
        print(f"taking addresses at {url}, asking {geocoder}; Ctrl-C stops", flush=True)
        state_dir = arguments.out / "ingest.state"
        report = show(made, url, state_dir) if arguments.demo else made.run(state_dir=state_dir)
    print(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
