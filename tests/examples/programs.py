"""The examples, as a module to call and as a program to run."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx

from consecution import Report, Running

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = (
    "airports",
    "budget",
    "flights",
    "inbox",
    "ingest",
    "investment",
    "mortgage",
    "paycheck",
    "pg_copy",
    "profit_share",
    "tour",
    "weblog",
)
DEADLINE_S = 60


def load(name: str) -> ModuleType:
    """The example as a module, under the name by which its own classes are found again."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def script(name: str, *arguments: str) -> list[str]:
    """The line that runs an example as a program of its own."""
    return [sys.executable, str(FOLDER / f"{name}.py"), *arguments]


def command(*arguments: str) -> list[str]:
    """The line of a ``consecution`` command."""
    return [sys.executable, "-m", "consecution", *arguments]


def call(line: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run it to its end in ``folder``."""
    return subprocess.run(line, cwd=folder, input=stdin, capture_output=True, text=True, timeout=DEADLINE_S)


@contextlib.contextmanager
def run_inline(module: ModuleType, items: Iterable[Any] | None = None) -> Iterator[tuple[Path, Report]]:
    """Run an example's pipeline in this thread; gives the folder it wrote into."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        yield out, module.build(out).run(items, mode="inline", robustness="track")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def start_listening(name: str, port: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A program that takes items by HTTP, as soon as it answers."""
    line = script(name, "--out", str(folder), "--port", str(port), *arguments)
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    give_up_s = time.monotonic() + DEADLINE_S
    while not answers(port):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_s, "it does not answer"
        time.sleep(0.05)
    return process


@contextlib.contextmanager
def following(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """An example as a daemon; killed at the end, if it is still there."""
    program = subprocess.Popen(script(name, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield program
    finally:
        program.kill()
        program.communicate(timeout=DEADLINE_S)


def wait_for(happened: Callable[[], bool], program: subprocess.Popen[str]) -> None:
    """Wait until it has happened; the program must go on meanwhile."""
    give_up_s = time.monotonic() + DEADLINE_S
    while not happened():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.02)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://localhost:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def stop(process: subprocess.Popen[str]) -> str:
    """Stop a program as Ctrl-C does; what it has told."""
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=DEADLINE_S)
    return told


def query(database: Path, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def wait_until(running: Running, happened: Callable[[], bool]) -> None:
    """Wait for something to happen while a run goes on; an error that ends the run comes out here."""
    give_up_s = time.monotonic() + DEADLINE_S
    while not happened():
        assert running.join(0.005) is None, "the run is over"
        assert time.monotonic() < give_up_s, "it did not happen"
