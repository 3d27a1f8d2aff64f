"""How much memory do more states take than fit into the cache, and how long does a restart over them take?

    python -m benchmarks.keys [--keys N] [--cache-mib N]

A keyed node gets a state of 100 bytes for each of so many keys, in one process (inline, robust). Its anonymous memory
is sampled from /proc (Linux); the same node with a thousand keys says what Python and the rest of the run take. Then
the run is stopped, and started again over the same folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consecution import KeyedNode, Pipeline

ROOT = Path(__file__).parents[1]
SAMPLE_EVERY_S = 0.05
FEW = 1_000
BODY = b"x" * 100


class Remember(KeyedNode):
    """A state per item. The first item is told of."""

    told = False

    def key(self, item: int) -> int:
        return item

    def process(self, item: int) -> None:
        if not self.told:
            self.told = True
            print("first", flush=True)
        self.state["body"] = BODY


def _numbers(since: int, count: int) -> Iterator[int]:
    """The numbers of this life, and then a stop: what was taken before is only counted."""
    yield from range(since + count)
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        time.sleep(0.05)
        yield 0


def _live(folder: str, since: int, count: int, cache_bytes: int) -> None:
    report = Pipeline(Remember("remember")).run(
        _numbers(since, count), mode="inline", state_dir=folder, cache_bytes=cache_bytes
    )
    print("left", report.pending, flush=True)


@dataclass(frozen=True, slots=True)
class Life:
    """One run of the child: how long until its first item, and in all; its most anonymous memory."""

    first_s: float
    seconds: float
    anonymous_mib: float


def live(folder: Path, since: int, count: int, cache_bytes: int) -> Life:
    started_s, first_s, most_kib = time.monotonic(), 0.0, 0
    command = [sys.executable, "-m", "benchmarks.keys", "--live", str(folder), str(since), str(count), str(cache_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        while child.poll() is None:
            most_kib = max(most_kib, _anonymous_kib(child.pid))
            if not first_s and child.stdout.readline().startswith(b"first"):
                first_s = time.monotonic() - started_s
            time.sleep(SAMPLE_EVERY_S)
        seconds = time.monotonic() - started_s
        if not first_s and b"first" in (child.stdout.read() or b""):
            first_s = seconds  # it was over before anybody looked again
    if child.returncode:
        raise RuntimeError(f"the run ended with exit code {child.returncode}")
    return Life(first_s, seconds, most_kib / 1024)


def _anonymous_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def report(keys: int, cache_mib: int) -> str:
    cache_bytes = cache_mib * 1024 * 1024
    with tempfile.TemporaryDirectory(prefix="benchmark-keys-") as made:
        few = live(Path(made, "few"), 0, FEW, cache_bytes)
        many = live(Path(made, "many"), 0, keys, cache_bytes)
        disk_bytes = sum(path.stat().st_blocks * 512 for path in Path(made, "many").rglob("*") if path.is_file())
        again = live(Path(made, "many"), keys, FEW, cache_bytes)
    rows = [
        ("keys", f"{keys:,} of {len(BODY)} bytes, {keys / (many.seconds - few.seconds):,.0f}/s"),
        ("anonymous memory, most", f"{many.anonymous_mib:,.0f} MiB; with {FEW:,} keys {few.anonymous_mib:,.0f} MiB"),
        ("that beyond few keys", f"{many.anonymous_mib - few.anonymous_mib:,.0f} MiB; cache_bytes {cache_mib:,} MiB"),
        ("on disk", f"{disk_bytes / 1024**2:,.0f} MiB"),
        ("restart to first item", f"{again.first_s:.1f} s, counting off {keys:,} items; {few.first_s:.1f} s when new"),
    ]
    return "\n".join(f"  {name: <24}{value}" for name, value in rows)


def main() -> int:
    if sys.argv[1:2] == ["--live"]:
        folder, *numbers = sys.argv[2:]
        _live(folder, *map(int, numbers))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keys", description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--cache-mib", type=int, default=1024)
    options = parser.parse_args()
    print(report(options.keys, options.cache_mib))
    return 0


if __name__ == "__main__":
    sys.exit(main())
